"""`edge ladder`: the time of a reply, from the naive way upwards, one step at a time, each of them really run.

A rung is a setup: the one below it and one change. It is run in processes of its own, which end where the program is
restarted, through `edge.load` and conversations. It is taken if the chat gets faster, and, being lossless, the model says the
same; the next rungs stand on it.
"""

from __future__ import annotations

import itertools
import math
import os
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

import edge
from edge.bench.ladder_child import Begin, Compute, Reached, Request, Say, Score, Unpack
from edge.bench.ladder_steps import STEPS, Models, Step, Variant, naive_setup
from edge.bench.ladder_values import FORMAT, Kind, Ladder, Rung, Setup, Stopped, Turn, Work, latency_of
from edge.bench.ladder_work import ABOUT_DOCUMENT, LABELS, QUESTIONS, choose_work, document, items, manual, session_of
from edge.child import Child, python_command, rebuild_error
from edge.errors import BackendError, EdgeError, ModelTooLargeError
from edge.formats.artifact import open_artifact
from edge.units import reason, size_text

if TYPE_CHECKING:
    from edge.formats.artifact import Artifact

__all__ = ["LOSSLESS_KL", "Program", "run_ladder", "unpacked"]

LOSSLESS_KL = 1e-3
"""Divergence in nats beyond which a step is not rounding any more; 8-bit activations have about 0.003."""
_MOST_OF_FREE = 0.7
_LATE = 2.0  # times the budget, after which nothing more is begun
_PROBE = Work(name="probe", n_turns=1, n_sessions=1, n_words=120, n_reply=8, n_questions=0, n_items=0, n_logits=0)


class Program:
    """One run of the program, in a process of its own. Use it in a `with` block.

    Args:
        entry: "module:function" of the process, which calls `edge.bench.ladder_child.serve`.

    Raises:
        BackendError: it cannot be started.
    """

    def __init__(self, entry: str) -> None:
        try:
            self._child = Child(python_command(entry))
        except OSError as error:
            raise BackendError(f"A process could not be started ({reason(error)}).", "Close other programs.") from error

    def ask(self, request: Request) -> Reached:
        """Send a request and wait for its answer.

        Raises:
            EdgeError: of the process, or it died.
        """
        line = self._child.ask(msgspec.json.encode(request))
        if not line:
            raise BackendError(f"The process that measured {self._child.wait().reason}.", "See: edge doctor")
        reached = msgspec.json.decode(line, type=Reached)
        if reached.problem is not None:
            raise rebuild_error(reached.problem.kind, reached.problem.message, reached.problem.hint)
        return reached

    def __enter__(self) -> Program:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        if kind is not None:
            self._child.stop()
        self._child.close()


def unpacked(artifact: Artifact, folder: Path, entry: str, n_threads: int, available_bytes: int) -> Artifact | None:
    """Return the model with its weights in 16 bits, written into a folder; None if they are so already, or it is no GGUF.

    Args:
        artifact: the model.
        folder: for the file.
        entry: see Program.
        n_threads: to write it with.
        available_bytes: free memory, for computing with it.

    Raises:
        ModelTooLargeError: there is no room for it, on the disk or in memory.
        EdgeError: it cannot be written.
    """
    if artifact.format != "gguf" or not artifact.quantisation.startswith(("Q", "IQ", "MXFP", "TQ")):
        return None
    n_bytes = 2 * artifact.header.n_params if artifact.header is not None else 0
    for place, free in (("memory", available_bytes), ("disk", shutil.disk_usage(folder).free)):
        if n_bytes > _MOST_OF_FREE * free:
            raise ModelTooLargeError(
                f"In 16 bits {artifact.name} takes {size_text(n_bytes)}; {size_text(free)} of the {place} are free.",
                "Measure a smaller model, or close other programs.",
            )
    out = folder / f"{artifact.path.stem}-F16.gguf"
    with Program(entry) as program:
        program.ask(Unpack(source=os.fsencode(artifact.path), out=os.fsencode(out), n_threads=n_threads))
    return open_artifact(out, name=artifact.name)


def run_ladder(
    models: Models,
    *,
    budget_s: float,
    entry: str,
    folder: Path,
    work: Work | None = None,
    on_progress: Callable[[str, float], None] = lambda text, share: None,
    on_rung: Callable[[Rung], None] = lambda rung: None,
    clock: Callable[[], float] = time.monotonic,
) -> Ladder:
    """Measure every step.

    After Ctrl-C, and when it takes far longer than it should, the result has the rungs so far and says that it was stopped.

    Args:
        models: what to run.
        budget_s: approximate duration; the workloads are as large as it allows.
        entry: see Program.
        folder: for what the programs store; several gigabytes for a large model.
        work: extent of the workloads; None measures what there is time for.
        on_progress: called with (current step, share done from 0 to 1).
        on_rung: called with every rung that is done.
        clock: in seconds.

    Raises:
        EdgeError: the first rung cannot be measured.
    """
    return _Climb(models, budget_s, entry, folder, on_progress, on_rung, clock).run(work)


@dataclass
class _Climb:
    """The state of a run: arguments as of `run_ladder`, and the rungs so far."""

    models: Models
    budget_s: float
    entry: str
    folder: Path
    on_progress: Callable[[str, float], None]
    on_rung: Callable[[Rung], None]
    clock: Callable[[], float]
    rungs: list[Rung] = field(default_factory=list)
    n_run: int = 0
    share: float = 0.0

    def run(self, work: Work | None) -> Ladder:
        started = self.started = self.clock()
        stopped: Stopped = ""
        self.work = work or _PROBE
        try:
            self.on_progress("starting", 0.0)
            naive = naive_setup(self.models)
            if work is None:
                self.work = self._probe(naive)
            self._add(replace(self._measure("naive", "start", Variant("the naive way", naive)), is_taken=True))
            for number, step in enumerate(STEPS, 1):
                if self.clock() - started > _LATE * self.budget_s:
                    stopped = "late"
                    break
                self.share = number / (len(STEPS) + 1)
                self._climb(step)
        except KeyboardInterrupt:
            stopped = "interrupted"
        device = self.models.device
        return Ladder(
            format=FORMAT,
            edge=edge.__version__,
            device=device.name,
            processor=f"{device.cpu.name}, {device.cpu.n_physical} cores",
            measured_at=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            model=self.models.start.name,
            work=self.work,
            seconds=self.clock() - started,
            stopped=stopped,
            rungs=tuple(self.rungs),
        )

    def _add(self, rung: Rung) -> None:
        self.rungs.append(rung)
        self.on_rung(rung)

    def _probe(self, setup: Setup) -> Work:
        """Return the extent of the workloads that there is time for, from one short reply."""
        began = self.clock()
        with Program(self.entry) as program:
            self._begin(program, setup, "probe")  # the first start checks the build of the engine, too
        began = self.clock()
        with Program(self.entry) as program:
            self._begin(program, setup, "probe")
            ready_s = self.clock() - began
            turn = program.ask(Say(text=manual(_PROBE.n_words), n_reply=_PROBE.n_reply)).turn
        assert turn is not None
        decode_s = max(1e-6, turn.total_ms - turn.first_ms) / 1000
        spent = self.clock() - self.started
        speeds = (turn.n_prompt / max(1e-6, turn.first_ms / 1000), max(1, turn.n_generated - 1) / decode_s)
        return choose_work(self.budget_s - spent, *speeds, ready_s)

    def _climb(self, step: Step) -> None:
        """Try the variants of a step, and take the best one if it is better than the rung below."""
        below = next(rung for rung in reversed(self.rungs) if rung.is_taken)
        assert below.setup is not None
        variants = step.variants(self.models, below.setup)
        if isinstance(variants, str):
            self._add(Rung(name=step.name, title=step.name, kind=step.kind, why=variants))
            return
        tried: list[Rung] = []
        for variant in variants:
            try:
                tried.append(self._measure(step.name, step.kind, variant))
            except EdgeError as error:
                self._add(Rung(name=step.name, title=variant.title, kind=step.kind, setup=variant.setup, why=error.message))
        judge = _steady_s if step.is_about_speed else _total_s
        able = [rung for rung in tried if not _loss(rung)]
        best = min(able, key=judge, default=None)
        if best is not None and judge(best) * step.worth > judge(below):
            best = None
        for rung in sorted(tried, key=lambda one: one is best):
            self._add(
                replace(rung, is_taken=True) if rung is best else replace(rung, why=_loss(rung) or _slower(rung, best, below))
            )

    def _begin(self, program: Program, setup: Setup, namespace: str) -> None:
        folder = os.fsencode(self.folder)
        program.ask(Begin(setup=setup, folder=folder, namespace=namespace, n_ctx=self.models.n_ctx))

    def _measure(self, name: str, kind: Kind, variant: Variant) -> Rung:
        """Run the workloads, with as many starts of the program as they have."""
        work, setup = self.work, variant.setup
        self.n_run += 1
        namespace = f"rung-{self.n_run}"
        is_late = bool(self.rungs) and self.clock() - self.started > self.budget_s
        n_questions = 0 if is_late else work.n_questions
        chat: list[Turn] = []
        asked: list[Turn] = []
        ready: list[float] = []
        scored, quality = Reached(), self._quality_file(self.n_run)
        conversation = ""
        for session in range(work.n_sessions):
            self.on_progress(f"{variant.title}: start {session + 1} of {work.n_sessions}", self.share)
            began = self.clock()
            with Program(self.entry) as program:
                self._begin(program, setup, namespace)
                ready.append(self.clock() - began)
                for number in range(work.n_turns):
                    if session_of(number, work.n_turns, work.n_sessions) == session:
                        say = Say(
                            text=QUESTIONS[number], n_reply=work.n_reply, conversation=conversation, system=manual(work.n_words)
                        )
                        self.on_progress(f"{variant.title}: turn {number + 1} of {work.n_turns}", self.share)
                        conversation = self._say(program, say, chat)
                for number in range(n_questions):
                    if session_of(number, n_questions, work.n_sessions) == session:
                        question, text = ABOUT_DOCUMENT[number], document(work.n_words)
                        self._say(program, Say(text=question, n_reply=work.n_reply, attachment=text), asked)
                if session == work.n_sessions - 1:
                    if work.n_items and not is_late:
                        scored = program.ask(Score(prompts=items(work.n_items), labels=LABELS))
                    if work.n_logits:
                        text, prefills = document(), setup.prefill_with is not None
                        program.ask(Compute(text=text, n_tokens=work.n_logits, out=os.fsencode(quality), prefills=prefills))
        first = self.rungs[0] if self.rungs else None
        kl, top1 = _compare(self._quality_file(1), quality) if work.n_logits else (None, None)
        if self.n_run > 1:
            quality.unlink(missing_ok=True)
        return Rung(
            name=name,
            title=variant.title,
            kind=kind,
            setup=setup,
            chat=latency_of(chat, first.chat_turns if first else chat),
            document=latency_of(asked, first.document_turns if first else asked),
            score_s=scored.seconds / len(scored.answers) if scored.answers else None,
            ready_s=statistics.fmean(ready),
            kl=kl,
            top1=top1,
            n_same_scores=_n_same(scored.answers, first.scores if first else scored.answers) if scored.answers else None,
            chat_turns=tuple(chat),
            document_turns=tuple(asked),
            scores=scored.answers,
        )

    def _say(self, program: Program, say: Say, turns: list[Turn]) -> str:
        reached = program.ask(say)
        assert reached.turn is not None
        turns.append(reached.turn)
        return reached.conversation

    def _quality_file(self, number: int) -> Path:
        return self.folder / f"logits-{number}.npy"


def _n_same(ours: Sequence[str], first: Sequence[str]) -> int:
    return sum(one == other for one, other in zip(ours, first, strict=False))


def _total_s(rung: Rung) -> float:
    return rung.chat.total_s if rung.chat is not None else float("inf")


def _steady_s(rung: Rung) -> float:
    """Return the time of a turn of which only the new tokens are computed, at the speeds of this rung's turns."""
    turns = rung.chat_turns
    if not turns:
        return float("inf")
    per_token = sum(turn.first_ms for turn in turns) / max(1, sum(turn.n_prompt - turn.n_reused for turn in turns))
    grown = [after.n_prompt - before.n_prompt - before.n_generated for before, after in itertools.pairwise(turns)]
    n_new = statistics.fmean(grown) if grown else turns[0].n_prompt
    return (per_token * n_new + statistics.fmean(turn.total_ms - turn.first_ms for turn in turns)) / 1000


def _loss(rung: Rung) -> str:
    """Return why a step that should be lossless is not; "" if it is, or need not be."""
    if rung.kind != "lossless" or rung.kl is None or rung.kl <= LOSSLESS_KL:
        return ""
    return f"it is not lossless here: KL {rung.kl:.4f} to the first rung"


def _slower(rung: Rung, best: Rung | None, below: Rung) -> str:
    if best is not None:
        return f"{best.title} is faster"
    if _total_s(rung) < _total_s(below):
        return "with prefixes reused it would be slower: its decoding takes longer"
    return "no faster than the rung below"


def _compare(reference: Path, ours: Path) -> tuple[float, float]:
    """Return the mean divergence of next-token distributions from the reference, in nats, and how often the likeliest agree.

    Where ours has fewer rows, it is compared with the last ones of the reference.

    Raises:
        BackendError: one of them is not made of finite numbers.
    """
    import numpy as np

    theirs, mine = np.load(reference, mmap_mode="r"), np.load(ours, mmap_mode="r")
    theirs = theirs[len(theirs) - len(mine) :]
    kl = [float((np.exp(p.astype(np.float64)) * (p.astype(np.float64) - q)).sum()) for p, q in zip(theirs, mine, strict=True)]
    top1 = [int(p.argmax() == q.argmax()) for p, q in zip(theirs, mine, strict=True)]
    mean = statistics.fmean(kl)
    if not math.isfinite(mean):  # max(0.0, NaN) would be 0: nothing lost
        raise BackendError("An engine computed logits that are not finite.", "See: edge doctor")
    return max(0.0, mean), statistics.fmean(top1)
