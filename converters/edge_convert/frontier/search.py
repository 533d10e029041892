"""Trains candidates for short times in rounds, and halves them after each.

Every candidate of a round is trained for the same time on the same texts, from the same hidden states of the teacher. A round
goes on from the weights of the last one, with a learning rate that rises and falls again, and other windows first.

    results.json       the points of all rounds so far; a candidate that is not in it yet resumes, or begins
    NAME/              a student after the last round that it was trained in: a checkpoint
    NAME.part/         one in training

Source: successive halving, Jamieson and Talwalkar (2016), arXiv:1502.07943.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edge.files import read_record, sync_file
from edge_convert.checkpoint import Checkpoint, open_checkpoint
from edge_convert.frontier.points import WHOLE, Candidate, Point, survivors
from edge_convert.smaller.choose_layers import sample_windows
from edge_convert.smaller.corpus import Corpus
from edge_convert.smaller.distill import distil
from edge_convert.smaller.ffn import narrow_ffn
from edge_convert.smaller.models import keep_layers, open_model, save_model
from edge_convert.smaller.recipe import CHOICE_TOKENS, Training
from edge_convert.smaller.records import Choice, HeldOut
from edge_convert.torch_models import layers_of

__all__ = ["Costs", "Rounds", "round_sizes", "search", "students", "whole_point"]

RESULTS = "results.json"
_POINT = "point.json"


class Costs(msgspec.Struct, frozen=True, kw_only=True):
    """What a token costs, for estimates of speed.

    Attributes:
        layer_params: weights of a layer of the teacher, and `inner_params` of one feed-forward neuron in it.
        inner_params: see there.
        inner, n_layers: of the teacher.
        head_params: weights of the students' head, `whole_head_params` of the teacher's.
        whole_head_params: see there.
        head_bits: bits of a weight of the head over those of a layer's, in the layout.
        other_params: of an embedding that is not the head; not read for a token.
        growth: tokens that a text takes, over those with the teacher's vocabulary.
    """

    layer_params: int
    inner_params: int
    inner: int
    n_layers: int
    head_params: int
    whole_head_params: int
    head_bits: float = 1.0
    other_params: int = 0
    growth: float = 1.0

    def body(self, n_layers: int, inner: int) -> int:
        """Return the weights of the layers."""
        return n_layers * (self.layer_params - (self.inner - inner) * self.inner_params)

    def decode(self, n_layers: int, inner: int) -> float:
        """Return times the teacher's decode speed, by the bytes that a token reads."""
        whole = self.body(self.n_layers, self.inner) + self.head_bits * self.whole_head_params
        return whole / (self.body(n_layers, inner) + self.head_bits * self.head_params) / self.growth

    def prefill(self, n_layers: int, inner: int) -> float:
        """Return times the teacher's prefill speed, by the weights that a token is multiplied with."""
        return self.body(self.n_layers, self.inner) / self.body(n_layers, inner) / self.growth


class Rounds(msgspec.Struct, frozen=True, kw_only=True):
    """How to search.

    Attributes:
        training: of every candidate, without its length.
        minutes: of training, in all.
        n_finalists: that are left in the end.
        min_speed: see `survivors`.
    """

    training: Training
    minutes: float
    n_finalists: int = 3
    min_speed: float = 0.0


def round_sizes(n_candidates: int, n_finalists: int) -> list[int]:
    """Return how many candidates each round trains: half of those of the round before, at least the finalists."""
    sizes = [n_candidates]
    while sizes[-1] > n_finalists:
        sizes.append(max(n_finalists, -(-sizes[-1] // 2)))
    return sizes


def search(
    folder: Path,
    teacher: Checkpoint,
    corpus: Corpus,
    hidden: Any,
    held_hidden: dict[str, Any],
    found: Sequence[Candidate],
    order: Sequence[int],
    costs: Costs,
    rounds: Rounds,
    on_progress: Callable[[str, float], None],
) -> list[Point]:
    """Search a frontier, resuming a stopped run.

    Args:
        folder: for results and students.
        teacher: over the tokens that stay.
        corpus, hidden, held_hidden: see `edge_convert.smaller.distill.distil`.
        found: the candidates.
        order: of the layers that leave, first to last.
        costs: for estimates of speed.
        rounds: how.
        on_progress: called with the state, and the share that is done; what it raises stops the search.

    Returns:
        The last point of every candidate, and the whole model's; the finalists have a folder.
    """
    path = folder / RESULTS
    done: list[list[Point]] = msgspec.json.decode(path.read_bytes(), type=list[list[Point]]) if path.is_file() else []
    sizes = round_sizes(len(found), rounds.n_finalists)
    alive = list(found)
    for number, size in enumerate(sizes):
        if len(done) == number:
            done.append([])
        trained = {point.name for point in done[number]}
        minutes = rounds.minutes / len(sizes) / size
        training = msgspec.structs.replace(rounds.training, minutes=minutes, steps=0, seed=rounds.training.seed + number)
        for place, candidate in enumerate(alive):
            if candidate.name in trained:
                continue

            where = f"round {number + 1} of {len(sizes)}, {candidate.name}"
            start, part = (number + place / size) / len(sizes), 1 / size / len(sizes)

            def on_part(text: str, share: float, where: str = where, start: float = start, part: float = part) -> None:
                on_progress(f"{where}: {text}", start + share * part)

            before = next((point for point in done[number - 1] if point.name == candidate.name), None) if number else None
            point = _train(folder, teacher, corpus, hidden, held_hidden, candidate, order, costs, training, before, on_part)
            done[number].append(point)
            _write(path, done)
        last = number + 1 == len(sizes)
        kept = {
            point.name for point in survivors(done[number], len(done[number]) if last else sizes[number + 1], rounds.min_speed)
        }
        for candidate in alive:
            if candidate.name not in kept:
                shutil.rmtree(folder / candidate.name, ignore_errors=True)
        alive = [candidate for candidate in alive if candidate.name in kept]
    newest = {point.name: point for points in done for point in points}
    return sorted(newest.values(), key=lambda point: point.speed)


def _train(
    folder: Path,
    teacher: Checkpoint,
    corpus: Corpus,
    hidden: Any,
    held_hidden: dict[str, Any],
    candidate: Candidate,
    order: Sequence[int],
    costs: Costs,
    training: Training,
    before: Point | None,
    on_part: Callable[[str, float], None],
) -> Point:
    """Train a candidate in one round, and store it."""
    stored = folder / candidate.name / _POINT
    point = read_record(stored, Point)  # of a run that was killed before it wrote the result
    if point is not None and point.n_rounds == 1 + (before.n_rounds if before else 0):
        return point
    on_part("cutting", 0.0)
    student, kept = _cut(folder, teacher, corpus, candidate, order, has_begun=before is not None)
    part = folder / f"{candidate.name}.part"
    part.mkdir(exist_ok=True)
    report = distil(student, corpus, hidden, held_hidden, training, part, on_part)
    save_model(student, part, teacher, teacher.name)
    choice = Choice(kept=kept, reason="each time the layer without which the divergence was least was left out")
    (part / "choice.json").write_bytes(msgspec.json.encode(choice))
    point = point_of(
        candidate,
        kept,
        report.after,
        costs,
        n_rounds=1 + (before.n_rounds if before else 0),
        seconds=report.seconds + (before.seconds if before else 0.0),
        n_tokens=report.tokens + (before.n_tokens if before else 0),
    )
    (part / _POINT).write_bytes(msgspec.json.encode(point))
    for path in part.rglob("*"):
        if path.is_file():
            sync_file(path)  # before the last round's student goes
    shutil.rmtree(folder / candidate.name, ignore_errors=True)
    part.rename(folder / candidate.name)
    return point


def _cut(
    folder: Path, teacher: Checkpoint, corpus: Corpus, candidate: Candidate, order: Sequence[int], *, has_begun: bool
) -> tuple[Any, tuple[int, ...]]:
    """Open a candidate: as the last round left it, or cut from the teacher. Returns it with the layers that it keeps."""
    if has_begun:
        choice = msgspec.json.decode((folder / candidate.name / "choice.json").read_bytes(), type=Choice)
        return open_model(folder / candidate.name), choice.kept
    model = open_model(teacher.folder)
    n_layers = len(layers_of(model))
    left = set(order[: n_layers - candidate.n_layers])
    kept = tuple(layer for layer in range(n_layers) if layer not in left)
    keep_layers(model, kept)
    if candidate.inner < model.config.intermediate_size:
        narrow_ffn(model, candidate.inner, sample_windows(corpus.tokens, CHOICE_TOKENS), lambda share: None)
    return model, kept


def point_of(
    candidate: Candidate,
    kept: tuple[int, ...],
    held_out: dict[str, HeldOut],
    costs: Costs,
    *,
    n_rounds: int = 0,
    seconds: float = 0.0,
    n_tokens: int = 0,
) -> Point:
    """Return the point of a candidate with this quality."""
    size = candidate.n_layers, candidate.inner
    return Point(
        name=candidate.name,
        n_layers=candidate.n_layers,
        inner=candidate.inner,
        kept=kept,
        n_params=costs.body(*size) + costs.head_params + costs.other_params,
        n_rounds=n_rounds,
        seconds=seconds,
        n_tokens=n_tokens,
        divergence=float(np.mean([one.divergence for one in held_out.values()])),
        top1=float(np.mean([one.top1 for one in held_out.values()])),
        held_out=held_out,
        decode_estimate=costs.decode(*size),
        prefill_estimate=costs.prefill(*size),
    )


def whole_point(teacher: Checkpoint, held_out: Sequence[str], costs: Costs) -> Point:
    """Return the point of the whole model over the tokens that stay, which is its own teacher."""
    model = teacher.model
    perfect = {name: HeldOut(divergence=0.0, top1=1.0) for name in held_out}
    whole = Candidate(name=WHOLE, n_layers=model.n_layers, inner=model.inner)
    return point_of(whole, tuple(range(model.n_layers)), perfect, costs)


def students(folder: Path, names: Sequence[str]) -> dict[str, Checkpoint]:
    """Open the students of a search that are left."""
    return {name: open_checkpoint(folder / name) for name in names if (folder / name).is_dir()}


def _write(path: Path, done: list[list[Point]]) -> None:
    part = path.with_suffix(".part")
    part.write_bytes(msgspec.json.encode(done))
    sync_file(part)
    part.rename(path)
