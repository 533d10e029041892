"""The plan of a model together with a second, smaller one that drafts for it: both have to fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from edge.plan.receipt import Choice
from edge.plan.two import plan_both
from edge.units import size_text

if TYPE_CHECKING:
    from edge.device.profile import DeviceProfile
    from edge.plan.receipt import Plan

__all__ = ["plan_with_draft", "without_draft"]

_LINE = "draft model"


def plan_with_draft(
    device: DeviceProfile, choose: Callable[[DeviceProfile], Plan], choose_draft: Callable[[DeviceProfile, Plan], Plan]
) -> Plan:
    """Return the plan of a model, with that of its draft model in it and in its memory.

    Args:
        device: from `edge.device.probe`.
        choose: plans the model.
        choose_draft: plans the draft model for as many tokens and sequences as a plan of the model has.

    Raises:
        ModelTooLargeError: one of them does not fit beside the other.
    """
    plan, draft = plan_both(device, choose, choose_draft)
    own, more = plan.memory, draft.memory
    line = Choice(
        _LINE,
        f"{draft.artifact.name}, {draft.backend} on {draft.accelerator}",
        f"asked for; it guesses tokens, which {plan.artifact.name} verifies, and takes {size_text(more.total_bytes)} of memory",
    )
    memory = replace(
        own,
        total_bytes=own.total_bytes + more.total_bytes,
        device_bytes=own.device_bytes + more.device_bytes,
        draft_bytes=more.total_bytes,
    )
    return replace(plan, draft=draft, memory=memory, choices=(*plan.choices, line))


def without_draft(plan: Plan, why: str) -> Plan:
    """Return a plan without its draft model; the receipt says why."""
    memory = replace(plan.memory, total_bytes=plan.memory.total_bytes - plan.memory.draft_bytes, draft_bytes=0)
    if plan.draft is not None:
        memory = replace(memory, device_bytes=memory.device_bytes - plan.draft.memory.device_bytes)
    others = tuple(choice for choice in plan.choices if choice.what != _LINE)
    return replace(plan, draft=None, memory=memory, choices=(*others, Choice(_LINE, "none", why)))
