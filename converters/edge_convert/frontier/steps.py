"""The search of a frontier as steps of a conversion; its result is the folder "frontier"."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import msgspec

from edge.errors import UsageError
from edge_convert import estimates
from edge_convert.facts import Facts, Request
from edge_convert.frontier.points import WHOLE, Frontier, candidates
from edge_convert.gguf.quantise import NEED_IMATRIX
from edge_convert.pipeline import FolderOf, Step, StepProgress
from edge_convert.shapes import EMBEDDING, HEAD
from edge_convert.smaller.recipe import CHOICE_TOKENS, DIVERGENCE_TOKENS, Recipe
from edge_convert.smaller.steps import flops_per_s, reading_steps, with_threads
from edge_convert.smaller.vocabulary_steps import TOKENS, VOCABULARY, with_vocabulary

if TYPE_CHECKING:
    from pathlib import Path

    from edge_convert.frontier.search import Costs

__all__ = ["FRONTIER", "frontier_steps"]

FRONTIER = "frontier"
_N_FINALISTS = 3
_BODY_BITS = {"F16": 16.0, "BF16": 16.0, "Q8_0": 8.5, "Q6_K": 6.6}
_SMALL_BITS, _HEAD_BITS = (
    5.0,
    8.5,
)  # of layouts with about four bits: the head keeps eight, where its width is no multiple of 256


def frontier_steps(facts: Facts, request: Request) -> list[Step]:
    """Plan the search: the texts, the order in which layers leave, the rounds, and the finalists' measures.

    Raises:
        UsageError: the model is too small for any candidate, or the layout needs an importance matrix.
    """
    recipe, n_threads = request.smaller, request.gguf.n_threads
    assert recipe is not None and request.frontier_minutes  # plan.py
    if len(candidates(facts.n_layers, facts.model.inner, facts.model.layer_kinds)) < _N_FINALISTS:
        raise UsageError(f"{facts.name} is too small to search a frontier.", "Name what stays: --keep-layers, --keep-ffn")
    layout = request.gguf.quantisations[0]
    if layout in NEED_IMATRIX:
        raise UsageError(
            f"A search measures its students without an importance matrix, and {layout} cannot be made so.",
            "Name another layout first: --quant Q4_0",
        )
    teacher = with_vocabulary(facts, recipe)
    return [
        *reading_steps(facts, recipe, n_threads),
        _order_step(teacher, recipe, n_threads),
        _search_step(facts, teacher, request, recipe),
        _measure_step(facts, teacher, request, recipe),
    ]


def _order_step(facts: Facts, recipe: Recipe, n_threads: int) -> Step:
    fewest = min(one.n_layers for one in candidates(facts.n_layers, facts.model.inner, facts.model.layer_kinds))

    def work(folder: Path, folder_of: FolderOf, on_progress: StepProgress) -> None:
        from edge_convert.smaller.choose_layers import layer_influence, removal_order, sample_windows
        from edge_convert.smaller.corpus import load_corpus
        from edge_convert.smaller.models import open_model

        model = open_model(facts.open(folder_of).folder)
        tokens = load_corpus(folder_of("text")).held_out_tokens
        if recipe.layers == "influence":
            influence = layer_influence(model, sample_windows(tokens, CHOICE_TOKENS), lambda share: on_progress("", share))
            inner = sorted(range(1, len(influence) - 1), key=lambda layer: influence[layer])
            order = tuple(inner[: facts.n_layers - fewest])
        else:
            windows = sample_windows(tokens, DIVERGENCE_TOKENS)
            order = removal_order(model, windows, fewest, lambda share: on_progress("", share))
        (folder / "order.json").write_text(json.dumps(order), encoding="ascii")

    n_passes = sum(range(fewest + 1, facts.n_layers + 1)) if recipe.layers != "influence" else 8
    flops = DIVERGENCE_TOKENS * n_passes * (1.5 * facts.n_layers * facts.layer_params + 4 * facts.n_vocab * facts.width)
    return Step(
        name="order",
        title="Find out in which order layers can leave",
        work=with_threads(work, n_threads),
        seconds=8 + flops / flops_per_s(n_threads),
        memory_bytes=estimates.cut_layers(facts, msgspec.structs.replace(recipe, keep_layers=fewest)),
        is_heavy=True,
    )


def _search_step(whole: Facts, facts: Facts, request: Request, recipe: Recipe) -> Step:
    minutes = request.frontier_minutes

    def work(folder: Path, folder_of: FolderOf, on_progress: StepProgress) -> None:
        from edge_convert.frontier.measure import growth_of
        from edge_convert.frontier.search import Rounds, search, whole_point
        from edge_convert.smaller.corpus import load_corpus
        from edge_convert.smaller.teacher import open_states

        teacher, corpus = facts.open(folder_of), load_corpus(folder_of("text"))
        order = tuple(json.loads((folder_of("order") / "order.json").read_bytes()))
        growth = growth_of(corpus, whole.open(folder_of).folder, teacher.folder) if recipe.keep_vocab else 1.0
        costs = _costs(whole, facts, request, growth)
        hidden, held = open_states(folder_of("hidden"), corpus.held_out)
        points = search(
            folder,
            teacher,
            corpus,
            hidden,
            held,
            candidates(facts.n_layers, facts.model.inner, facts.model.layer_kinds, order),
            order,
            costs,
            Rounds(training=recipe.training, minutes=minutes, n_finalists=_N_FINALISTS, min_speed=request.frontier_speed),
            on_progress,
        )
        points = [whole_point(teacher, list(corpus.held_out), costs), *points]
        (folder / "points.json").write_bytes(msgspec.json.encode((growth, points)))

    found = candidates(facts.n_layers, facts.model.inner, facts.model.layer_kinds)
    return Step(
        name="search",
        title=f"Train {len(found)} candidates for {minutes:g} min in all, and halve them",
        work=with_threads(work, request.gguf.n_threads),
        seconds=60 * minutes + 25 * len(found),
        disk_bytes=2 * len(found) * facts.n_params + 24 * facts.n_params,
        memory_bytes=estimates.distil(facts, recipe),
        is_heavy=True,
        resumes=True,
    )


def _costs(whole: Facts, facts: Facts, request: Request, growth: float) -> Costs:
    from edge_convert.frontier.search import Costs

    body_bits = _BODY_BITS.get(request.gguf.quantisations[0], _SMALL_BITS)
    is_tied = HEAD not in facts.shapes
    return Costs(
        layer_params=facts.layer_params,
        inner_params=3 * facts.width,
        inner=facts.model.inner,
        n_layers=facts.n_layers,
        head_params=facts.n_vocab * facts.width,
        whole_head_params=whole.n_vocab * whole.width,
        head_bits=max(1.0, _HEAD_BITS / body_bits),
        other_params=0 if is_tied else facts.shapes[EMBEDDING][0] * facts.width,
        growth=growth,
    )


def _measure_step(whole: Facts, facts: Facts, request: Request, recipe: Recipe) -> Step:
    layout = request.gguf.quantisations[0]

    def work(folder: Path, folder_of: FolderOf, on_progress: StepProgress) -> None:
        from edge_convert.frontier.measure import measure
        from edge_convert.frontier.points import Point
        from edge_convert.frontier.report import write_frontier
        from edge_convert.frontier.search import students
        from edge_convert.smaller.corpus import copy_corpus

        growth, points = msgspec.json.decode((folder_of("search") / "points.json").read_bytes(), type=tuple[float, list[Point]])
        found = students(folder_of("search"), [point.name for point in points])
        measured = measure(folder, whole.open(folder_of), found, points, request.gguf, growth, on_progress)
        frontier = Frontier(
            model=whole.name,
            n_vocab=facts.n_vocab,
            whole_vocab=whole.n_vocab,
            growth=growth,
            layout=layout,
            machine=measured.machine,
            teacher_decode=measured.decode,
            teacher_prefill=measured.prefill,
            points=tuple(sorted(measured.points, key=lambda point: (point.name != WHOLE, point.speed))),
            finalists=tuple(found),
        )
        write_frontier(folder, frontier)
        for name, student in found.items():
            shutil.copytree(student.folder, folder / name)
        (folder / "text").mkdir()
        copy_corpus(folder_of("text"), folder / "text")
        if recipe.keep_vocab:
            shutil.copyfile(folder_of(VOCABULARY) / TOKENS, folder / TOKENS)

    return Step(
        name=FRONTIER,
        title=f"Measure the last {_N_FINALISTS} in {layout}: speed, and questions answered",
        work=work,
        artifact=True,
        seconds=60 + (_N_FINALISTS + 1) * (10 + facts.n_params / 4e6),
        disk_bytes=2 * (_N_FINALISTS + 4) * whole.n_params,
        memory_bytes=estimates.write_gguf(whole),
        is_heavy=True,
    )
