"""Training: brings the student's distribution over the next token to the teacher's, on the same text.

Weights are trained in float32 and computed in bfloat16; the teacher's embedding and head do not change. Where the student is to
be quantised, what is trained are numbers that a target's grid makes the weights of, see `Masters`. The state of a run (trained
numbers, both moments of Adam, the step, the clock) is saved from time to time and when the run is stopped, so that it resumes
exactly there. It is plain tensors and JSON, no pickle.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from edge.errors import ModelFileError
from edge.files import sync_file
from edge_convert.smaller.corpus import Corpus
from edge_convert.smaller.models import head_of
from edge_convert.smaller.recipe import BETAS, Training
from edge_convert.smaller.records import HeldOut, Report
from edge_convert.smaller.teacher import hidden_rows
from edge_convert.torch_models import layers_of

__all__ = ["FloatMasters", "Masters", "distil", "measure", "trained_weights"]

_CLIP = 1.0
_PROGRESS_TOKENS = 2048
_LEAST_RATE = 0.02
_SMALL_KL = 0.2  # changes of a recovery are in the third digit
_WEIGHTS = "state.safetensors"


class _State(msgspec.Struct):
    """Progress of a training, saved with its tensors."""

    step: int = 0
    elapsed_s: float = 0.0
    course: list[tuple[float, float]] = []
    before: dict[str, HeldOut] = {}


class Masters(Protocol):
    """The numbers that are trained, and the weights that a student gets from them. Tensors by name; weights in bfloat16."""

    def start(self, weights: dict[str, Any]) -> dict[str, Any]:
        """Return the numbers to train, float32, for the weights of a student that is not trained yet."""

    def pull(self, masters: dict[str, Any], gradients: dict[str, Any]) -> dict[str, Any]:
        """Return the gradient by each number, float32, from those by the weights."""

    def push(self, masters: dict[str, Any], weights: dict[str, Any]) -> None:
        """Write the weights that belong to these numbers into `weights`."""


class FloatMasters:
    """Trains the weights themselves, in float32."""

    def start(self, weights: dict[str, Any]) -> dict[str, Any]:
        """Return the weights, widened."""
        return {name: weight.detach().float().clone() for name, weight in weights.items()}

    def pull(self, masters: dict[str, Any], gradients: dict[str, Any]) -> dict[str, Any]:
        """Return the gradients, widened."""
        return {name: gradient.float() for name, gradient in gradients.items()}

    def push(self, masters: dict[str, Any], weights: dict[str, Any]) -> None:
        """Round the weights."""
        torch._foreach_copy_(list(weights.values()), list(masters.values()))


def distil(
    student: Any,
    corpus: Corpus,
    hidden: Any,
    held_hidden: dict[str, Any],
    training: Training,
    folder: Path,
    on_progress: Callable[[str, float], None],
    masters: Masters | None = None,
) -> Report:
    """Train a student in place.

    Args:
        student: a bfloat16 model from `edge_convert.smaller.models`.
        corpus: to train on.
        hidden: the teacher's last hidden states over it, see `edge_convert.smaller.teacher`.
        held_hidden: over the held-out texts.
        training: how.
        folder: for the state of a stopped run, which a second call resumes.
        on_progress: called with the state, and the share that is done. What it raises stops the run, as Ctrl-C does.
        masters: what is trained, where that is not the weights themselves.

    Raises:
        ModelFileError: the training diverged.
    """
    run = _Run(student, corpus, hidden, held_hidden, training, folder, masters or FloatMasters())
    if not run.resume():
        on_progress("measuring the student before training", 0.0)
        run.state.before = measure(student, corpus, held_hidden)
        run.look()
    try:
        while run.share < 1:
            run.step()
            on_progress(run.describe(), run.share)
    except BaseException:
        if run.is_whole:
            run.save()
        raise
    on_progress("measuring the student after training", 1.0)
    after = measure(student, corpus, held_hidden)
    (folder / _WEIGHTS).unlink(missing_ok=True)
    state = run.state
    return Report(
        steps=state.step,
        device=str(student.device.type),
        tokens=state.step * training.batch * training.window,
        seconds=state.elapsed_s,
        before=state.before,
        after=after,
        course=tuple(state.course),
    )


def trained_weights(student: Any) -> dict[str, Any]:
    """Return the weights that a training changes: those of the layers ("0.mlp.up_proj.weight") and the last norm's."""
    last = {f"norm.{name}": weight for name, weight in student.base_model.norm.named_parameters()}
    return {**dict(layers_of(student).named_parameters()), **last}


def measure(student: Any, corpus: Corpus, held_hidden: dict[str, Any]) -> dict[str, HeldOut]:
    """Measure a student on each held-out text."""
    return {
        name: _measure(student, *corpus.held_out[name], held_hidden[name], len(corpus.held_out[name][0]))
        for name in corpus.held_out
    }


def _measure(student: Any, tokens: Any, counted: Any, hidden: Any, n_windows: int) -> HeldOut:
    head = head_of(student)
    divergences, agreements = [], []
    with torch.inference_mode():
        for start in range(0, n_windows, 8):
            rows = np.arange(start, min(start + 8, n_windows))
            ours, theirs = _both(student, tokens[rows], counted[rows], hidden_rows(hidden, rows))
            found = head.divergence(ours, theirs)
            divergences.append(found[0])
            agreements.append(found[1])
    return HeldOut(divergence=float(torch.cat(divergences).mean()), top1=float(torch.cat(agreements).float().mean()))


def _both(student: Any, tokens: Any, counted: Any, stored: Any) -> tuple[Any, Any]:
    """Return the last hidden states of student and teacher where they count, [n, width] each, on the student's device."""
    marks = torch.from_numpy(counted)
    inputs = torch.from_numpy(tokens.astype(np.int64)).to(student.device)
    ours = student.base_model(input_ids=inputs, use_cache=False).last_hidden_state
    return ours[marks.to(student.device)], stored[marks].to(student.device)


class _Run:
    """One training, from its beginning or a saved state."""

    def __init__(
        self,
        student: Any,
        corpus: Corpus,
        hidden: Any,
        held_hidden: dict[str, Any],
        training: Training,
        folder: Path,
        masters: Masters,
    ) -> None:
        self._student, self._corpus, self._hidden, self._held = student, corpus, hidden, held_hidden
        self._training, self._folder = training, folder
        self._head = head_of(student)
        self._weights = trained_weights(student)
        for parameter in self._weights.values():
            parameter.requires_grad_(True)
        self._kind = masters
        self._masters = {name: master.requires_grad_(True) for name, master in masters.start(self._weights).items()}
        groups = [
            {"params": [m for m in self._masters.values() if m.ndim > 1], "weight_decay": training.weight_decay},
            {"params": [m for m in self._masters.values() if m.ndim <= 1], "weight_decay": 0.0},
        ]
        self._optimiser = torch.optim.AdamW(groups, lr=training.lr, betas=BETAS, fused=True)
        self._order: tuple[int, Any] = (-1, None)
        self._saved_at = time.monotonic()
        self.state = _State()
        self._push()
        self.is_whole = True  # False while weights change: a state saved then would be inconsistent

    @property
    def share(self) -> float:
        """Share of the training that is done."""
        training = self._training
        return self.state.step / training.steps if training.steps else self.state.elapsed_s / (60 * training.minutes)

    def step(self) -> None:
        """Train on a batch. From time to time measure on held-out texts, and save."""
        started = time.monotonic()
        share = self.share
        gradients = self._gradients(self._rows())
        self.is_whole = False
        self._update(gradients, _rate(share, self._training))
        self.state.step += 1
        self.state.elapsed_s += time.monotonic() - started
        self.is_whole = True
        if int(self.share * 20) > int(share * 20):
            self.look()
        if time.monotonic() - self._saved_at >= self._training.save_s:
            self.save()

    def _rows(self) -> Any:
        """Return the windows of this step: all of them once, in a new order, before any repeats."""
        n_windows, batch = len(self._corpus.tokens), self._training.batch
        positions = np.arange(self.state.step * batch, (self.state.step + 1) * batch)
        found = []
        for position in positions:
            epoch = int(position) // n_windows
            if self._order[0] != epoch:
                self._order = epoch, np.random.default_rng([self._training.seed, epoch]).permutation(n_windows)
            found.append(self._order[1][position % n_windows])
        return np.sort(np.asarray(found))  # ascending, for the disk

    def _gradients(self, rows: Any) -> dict[str, Any]:
        corpus, stored = self._corpus, hidden_rows(self._hidden, rows)
        student, teacher = _both(self._student, corpus.tokens[rows], corpus.counted[rows], stored)
        slope = self._head.gradient(student.detach(), teacher)
        found = torch.autograd.grad(student, list(self._weights.values()), slope)
        with torch.no_grad():
            return self._kind.pull(self._masters, dict(zip(self._weights, found, strict=True)))

    def _update(self, gradients: dict[str, Any], rate: float) -> None:
        norm = float(torch.stack(torch._foreach_norm(list(gradients.values()))).norm())
        if not math.isfinite(norm):
            raise ModelFileError("The training diverged: its gradient is not a number any more.", "Use a lower learning rate.")
        if norm > _CLIP:
            torch._foreach_mul_(list(gradients.values()), _CLIP / norm)
        for name, master in self._masters.items():
            master.grad = gradients[name]
        for group in self._optimiser.param_groups:
            group["lr"] = self._training.lr * rate
        self._optimiser.step()
        self._push()

    def _push(self) -> None:
        with torch.no_grad():
            self._kind.push(self._masters, self._weights)

    def look(self) -> None:
        """Record the mean divergence on a small part of each held-out text."""
        if not self._corpus.held_out:
            return
        each = max(1, _PROGRESS_TOKENS // self._training.window // len(self._corpus.held_out))
        found = [
            _measure(self._student, tokens, counted, self._held[name], min(each, len(tokens))).divergence
            for name, (tokens, counted) in self._corpus.held_out.items()
        ]
        self.state.course.append((self.state.elapsed_s, sum(found) / len(found)))

    def describe(self) -> str:
        """Return the state in a few words."""
        state, training = self.state, self._training
        speed = state.step * training.batch * training.window / max(state.elapsed_s, 1e-9)
        text = f"step {state.step:,}, {speed:,.0f} tokens/s"
        if state.course:
            digits = 2 if state.course[0][1] > _SMALL_KL else 4
            text = f"held-out KL {state.course[-1][1]:.{digits}f} (was {state.course[0][1]:.{digits}f}), {text}"
        return text

    def save(self) -> None:
        """Write the state. The old one stays until the new one is complete."""
        tensors = {}
        for name, master in self._masters.items():
            tensors[f"weight/{name}"] = master.detach().cpu()
            for key in ("exp_avg", "exp_avg_sq", "step"):
                if master in self._optimiser.state:
                    value = self._optimiser.state[master][key]
                    tensors[f"{key}/{name}"] = value.reshape(-1).cpu() if key == "step" else value.cpu()
        part = self._folder / f"{_WEIGHTS}.part"
        # The numbers go into the header of the tensors' file, so that one rename replaces both.
        save_file(tensors, part, metadata={"state": msgspec.json.encode(self.state).decode()})
        sync_file(part)
        part.rename(self._folder / _WEIGHTS)
        self._saved_at = time.monotonic()

    def resume(self) -> bool:
        """Resume from a saved state; return False if there is none."""
        path = self._folder / _WEIGHTS
        if not path.is_file():
            return False
        try:
            with safe_open(path, framework="pt") as file, torch.no_grad():
                self.state = msgspec.json.decode((file.metadata() or {})["state"], type=_State)
                for name, master in self._masters.items():
                    master.copy_(file.get_tensor(f"weight/{name}"))
                    if f"step/{name}" in file.keys():  # noqa: SIM118  # no mapping
                        self._optimiser.state[master] = {
                            "step": file.get_tensor(f"step/{name}").reshape(()).to(master.device),
                            "exp_avg": file.get_tensor(f"exp_avg/{name}").to(master.device),
                            "exp_avg_sq": file.get_tensor(f"exp_avg_sq/{name}").to(master.device),
                        }
            self._push()
        except (SafetensorError, KeyError, msgspec.MsgspecError) as error:
            raise ModelFileError(f"The state of the training in {path} is damaged: {error}.", f"Delete it: {path}") from error
        return True


def _rate(share: float, training: Training) -> float:
    """Return the learning rate's share of its maximum: linear warm-up, linear decay."""
    if share < training.warmup:
        return max(share / training.warmup, _LEAST_RATE)
    return max((1 - share) / (1 - training.warmup), _LEAST_RATE)
