"""The plan of a model on two engines: one prefills long prompts, the other one decodes (edge/backends/paired.py)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from edge.errors import EdgeError, UsageError
from edge.plan.memory import memory_model
from edge.plan.receipt import Choice, PrefillPlan
from edge.plan.two import device_without, plan_both
from edge.registry import ENGINES
from edge.units import size_text

if TYPE_CHECKING:
    from edge.device.profile import DeviceProfile
    from edge.plan.receipt import Plan, PlanRequest
    from edge.plan.speed import EngineSpeed
    from edge.plan.tuning import Tuning

__all__ = ["check_prefiller", "handover", "plan_with_prefiller", "plan_with_tuned_prefiller", "without_prefiller"]

_LINE = "prefill"
_LEAST = 32
"""Fewest tokens of a chunk that another engine computes: in shorter ones engines differ little."""
_MARGIN = 2.0  # the gain has to be so many times what the handover takes
_CARRY_BYTES_S = 1e9
"""Export and import of keys and values: 512 tokens of SmolLM2, 12 MB, took 5 ms on a Zen 5, and on slower memory more."""

Choose = Callable[["DeviceProfile", "PlanRequest"], "Plan"]


def check_prefiller(name: str) -> None:
    """Refuse an engine that does not exist.

    Raises:
        UsageError: there is none of that name.
    """
    if name not in ENGINES:
        known = ", ".join(row.name for row in ENGINES.values() if row.is_automatic)
        raise UsageError(f"There is no backend {name!r} to prefill with.", f"Known here: {known}; or off, or auto.")


def plan_with_prefiller(
    device: DeviceProfile,
    name: str,
    choose: Callable[[DeviceProfile], Plan],
    choose_prefiller: Callable[[DeviceProfile, Plan], Plan],
    tuning: Callable[[Plan], Tuning | None],
) -> Plan:
    """Return the plan of a model whose long prompts another engine prefills, which was asked for.

    Args:
        device: from `edge.device.probe`.
        name: of that engine.
        choose: plans the model.
        choose_prefiller: plans it on that engine for as many tokens as a plan of the model has.
        tuning: returns what was measured of a plan's model.

    Raises:
        EdgeError: as both; ModelTooLargeError also if one does not fit beside the other.
    """
    alone = choose(device)
    if alone.backend == name:
        return without_prefiller(alone, "asked for; it decodes, too", name=name)
    plan, prefiller = plan_both(device, choose, choose_prefiller)
    return _join(plan, prefiller, tuning(plan), "asked for")


def plan_with_tuned_prefiller(
    device: DeviceProfile,
    request: PlanRequest,
    plan: Plan,
    choose: Choose,
    choose_prefiller: Callable[[DeviceProfile, Plan, str], Plan],
    tuning: Tuning | None,
) -> Plan:
    """Return the plan of two engines, where `edge tune` measured that a turn takes less time with them; else the plan.

    Args:
        device, request: as for `make_plan`.
        plan: the best one with one engine.
        choose: plans the model.
        choose_prefiller: plans it on a named engine, as for `plan_with_prefiller`.
        tuning: what was measured of the model.
    """
    pair = tuning.pair if tuning is not None else None
    if tuning is None or pair is None or request.backend not in (None, pair.backend):
        return plan
    try:
        decoder = plan if plan.backend == pair.backend else choose(device, replace(request, backend=pair.backend))
        if decoder.artifact != plan.artifact or not _can_share(decoder, pair):
            return plan
        prefiller = choose_prefiller(device_without(device, decoder.memory), decoder, pair.prefill_with)
    except EdgeError as error:
        return without_prefiller(plan, f"{pair.prefill_with} would prefill faster, but {error.message}")
    if decoder.n_ctx < plan.n_ctx:
        return without_prefiller(plan, f"{pair.prefill_with} beside {pair.backend} would cost context")
    why = (
        f"measured {tuning.source}: a turn takes {pair.turn_s:.2f} s, with {tuning.backend} alone {tuning.turn_s:.2f} s; "
        f"{pair.divergence or 0.0:.4f} nats apart by rounding"
    )
    return _join(decoder, prefiller, tuning, why)


def handover(decoder: EngineSpeed | None, prefiller: EngineSpeed | None, cell_bytes: int, chunk: int) -> tuple[int, float]:
    """Return from how many tokens on a chunk is worth handing over, and how many more for each token before it.

    The decoder computes the last token of a chunk itself, and hands over what is before the chunk: the gain has to be twice
    that.

    Args:
        decoder, prefiller: speeds; without both, the chunk counts as worth it from a few tokens on.
        cell_bytes: keys and values of a token.
        chunk: tokens of a whole chunk, which is always worth it at the beginning.
    """
    if decoder is None or prefiller is None or prefiller.prefill_tokens_per_s <= decoder.prefill_tokens_per_s:
        return _LEAST, 0.0
    gain_s = 1 / decoder.prefill_tokens_per_s - 1 / prefiller.prefill_tokens_per_s
    least = math.ceil(_MARGIN / decoder.decode_tokens_per_s / gain_s)
    return min(max(_LEAST, least), chunk), round(_MARGIN * cell_bytes / _CARRY_BYTES_S / gain_s, 4)


def without_prefiller(plan: Plan, why: str, *, name: str = "") -> Plan:
    """Return a plan in which one engine does everything; the receipt says why.

    Args:
        plan: with or without another engine.
        why: the reason.
        name: what the line shows; "" is the plan's engine.
    """
    memory = replace(plan.memory, total_bytes=plan.memory.total_bytes - plan.memory.prefill_bytes, prefill_bytes=0)
    others = tuple(choice for choice in plan.choices if choice.what != _LINE)
    return replace(plan, prefill=None, memory=memory, choices=(*others, Choice(_LINE, name or plan.backend, why)))


def _can_share(decoder: Plan, pair: EngineSpeed) -> bool:
    kinds = (decoder.accelerator, decoder.kv_type_k, decoder.kv_type_v, decoder.flash_attention)
    return kinds == (pair.accelerator, "f16", "f16", True)


def _join(plan: Plan, prefiller: Plan, tuning: Tuning | None, why: str) -> Plan:
    speeds = [tuning.engine(one.backend, one.accelerator) if tuning is not None else None for one in (plan, prefiller)]
    cell_bytes = memory_model(plan.artifact).cell_bytes(plan.kv_type_k, plan.kv_type_v)
    least, per_token = handover(speeds[0], speeds[1], cell_bytes, plan.n_ubatch)
    own, more = plan.memory, prefiller.memory.total_bytes
    line = Choice(
        _LINE,
        f"{prefiller.backend}, {plan.backend} decodes",
        f"{why}; from {least} tokens on, handed over in memory; {size_text(more)} of memory beside {plan.backend}'s",
    )
    memory = replace(own, total_bytes=own.total_bytes + more, prefill_bytes=more)
    return replace(plan, prefill=PrefillPlan(prefiller, least, per_token), memory=memory, choices=(*plan.choices, line))
