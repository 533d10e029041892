"""The last step of a conversion: the results are evaluated against their source, and held to a gate.

The evaluation does not depend on the gate, so a run that failed one can be repeated with another at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from edge_convert import estimates
from edge_convert.evaluate.card import Card, markdown, read_card, to_json
from edge_convert.evaluate.evaluation import EvaluateOptions, evaluate
from edge_convert.evaluate.gate import check, parse_gate
from edge_convert.evaluate.logits import is_slow, model_in
from edge_convert.evaluate.page import html_page
from edge_convert.evaluate.tasks.suite import TaskOptions
from edge_convert.facts import Facts
from edge_convert.pipeline import FolderOf, Plan, Step, StepProgress

__all__ = ["CARD", "apply_gate", "card_step", "measured"]

CARD = "card"
_READ_S = 1.5e-8  # seconds a weight takes for all texts, on one core
_TASK_S = 2e-7  # seconds per weight, model and task, on one core
_MODEL_S = 12.0
_EVALUATOR_S = 7e-9  # seconds per weight and token


def card_step(facts: Facts, steps: Sequence[Step], tasks: tuple[str, ...] = ()) -> Step:
    """Plan the step that evaluates artifacts.

    Args:
        facts: of the reference; the card is headed by its name, and calls the checkpoint so, whose folder may be one of ours.
        steps: that make the artifacts.
        tasks: to ask the reference and the artifacts.
    """
    chosen = EvaluateOptions(tasks=TaskOptions(tasks=tasks) if tasks else None)
    n_slow = sum(is_slow(step.name.partition("-")[0]) for step in steps)

    def work(folder: Path, folder_of: FolderOf, on_progress: StepProgress) -> None:
        models = [model_in(folder_of(step.name)) for step in steps]
        card = evaluate(models, facts.open(folder_of).folder, chosen, on_progress)
        first, *rest = card.rows
        rows = (msgspec.structs.replace(first, name=facts.name), *rest)
        _write(folder, msgspec.structs.replace(card, title=f"{facts.name}, converted", reference=facts.name, rows=rows))

    return Step(
        name=CARD,
        title="Evaluate the results against the source",
        work=work,
        artifact=True,
        is_extra=True,
        seconds=(len(steps) - n_slow + 2) * (_MODEL_S + facts.n_params * _READ_S)
        + n_slow * facts.n_params * _EVALUATOR_S * chosen.texts.n_slow
        + (len(steps) - n_slow + 1) * facts.n_params * _TASK_S * len(tasks),
        disk_bytes=1 << 20,
        memory_bytes=estimates.evaluate(facts, min(2, n_slow)),
    )


def apply_gate(plan: Plan, gate: str) -> Card:
    """Hold the card of a plan, whose steps are done, to a gate, and write the verdict into it.

    Raises:
        UsageError: the gate is malformed.
        ModelFileError: there is no card.
    """
    limits = parse_gate(gate)
    folder = next((path for path in (plan.work / CARD, plan.out / CARD) if path.exists()), plan.work / CARD)
    card = read_card(folder / "card.json")
    rows = tuple(
        row if row.is_reference else msgspec.structs.replace(row, failures=check(row.quality, limits, row.usefulness))
        for row in card.rows
    )
    card = msgspec.structs.replace(card, gate=gate, rows=rows)
    _write(folder, card)
    return card


def measured(plan: Plan) -> list[str]:
    """Return the names of the artifacts on the card, in its order."""
    return [step.name for step in plan.steps if step.artifact and step.name != CARD]


def _write(folder: Path, card: Card) -> None:
    (folder / "card.json").write_bytes(to_json(card))
    (folder / "card.md").write_text(markdown(card), encoding="utf-8")
    (folder / "card.html").write_text(html_page(card), encoding="utf-8")
