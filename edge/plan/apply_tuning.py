"""Puts what `edge tune` measured in the place of the plan's usual choice, and says so in the receipt. Values only.

What was asked for wins; what does not fit into memory, or would cost context, is left as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edge.plan.receipt import Choice, PlanRequest

if TYPE_CHECKING:
    from edge.device.profile import Cpu
    from edge.plan.memory import Layout
    from edge.plan.placement import EngineRow, Target
    from edge.plan.tuning import Lookup, Tuning

__all__ = ["Better", "apply_tuning", "explain_tuning", "prefer_measured"]

_EXACT = ("f32", "f16", "bf16")


@dataclass(frozen=True, slots=True)
class Better:
    """A request in which the tuning stands where nothing was asked for."""

    request: PlanRequest
    tuning: Tuning


def apply_tuning(tuned: Lookup | None, row: EngineRow, target: Target, request: PlanRequest, cpu: Cpu) -> Better | None:
    """The request with the measured settings; None where nothing was measured for this engine and accelerator."""
    tuning = tuned.tuning if tuned is not None else None
    if tuning is None or (tuning.backend, tuning.accelerator) != (row.name, target.accelerator):
        return None
    if max(tuning.threads, tuning.threads_batch) > cpu.usable_logical:
        return None  # the fingerprint rules it out; a number of threads that cannot be is not worth relying on that
    changed = request
    if request.threads is None:
        changed = replace(changed, threads=tuning.threads, threads_batch=request.threads_batch or tuning.threads_batch)
    if request.n_ubatch is None:
        changed = replace(changed, n_ubatch=tuning.n_ubatch)
    if (request.kv_type_k, request.kv_type_v) == (None, None) and not _is_exact(tuning):
        changed = replace(changed, kv_type_k=tuning.kv_type_k, kv_type_v=tuning.kv_type_v)
    is_exact = changed.kv_type_v in (None, "f16")  # anything else needs the fused attention
    if request.flash_attention is None and is_exact and not tuning.flash_attention:
        changed = replace(changed, flash_attention=False)
    return Better(changed, tuning)


def prefer_measured(
    tuned: Lookup | None, row: EngineRow, targets: list[Target], request: PlanRequest
) -> tuple[list[Target], str]:
    """The accelerators to try, the one that was measured to be fastest first: what is usually best need not be on this device.

    Args:
        tuned: what was looked up.
        row: the engine.
        targets: as usual, best first; at least one.
        request: what the user asked for, which wins.

    Returns:
        The accelerators, and why they are in another order; "" where they are not.
    """
    tuning = tuned.tuning if tuned is not None else None
    if tuning is None or tuning.backend != row.name or request.require is not None or request.gpu_layers is not None:
        return targets, ""
    best = next((target for target in targets if target.accelerator == tuning.accelerator), targets[0])
    if best is targets[0]:
        return targets, ""
    speeds = _compare(tuning.decode_tokens_per_s, tuning.default_decode_tokens_per_s)
    why = f"measured by edge tune on {tuning.measured_on}: decode {speeds}"
    return [best, *(target for target in targets if target is not best)], why


def explain_tuning(
    choices: Sequence[Choice],
    tuned: Lookup | None,
    tuning: Tuning | None,
    request: PlanRequest,
    usual: Layout,
    usual_threads: tuple[Choice, Choice],
) -> tuple[Choice, ...]:
    """The receipt with the reasons of what was measured.

    Args:
        choices: of the plan, measured settings included.
        tuned: what was looked up.
        tuning: what of it was taken; None where nothing was.
        request: what the user asked for, without the tuning.
        usual: what would have been chosen without it.
        usual_threads: likewise.
    """
    if tuning is None:
        if tuned is None or not tuned.ignored:
            return tuple(choices)
        return (*choices, Choice("tuning", "not used", tuned.ignored))
    decode = _compare(tuning.decode_tokens_per_s, tuning.default_decode_tokens_per_s)
    prefill = _compare(tuning.prefill_tokens_per_s, tuning.default_prefill_tokens_per_s)
    measured = {
        "threads": (request.threads, usual_threads[0].value, f"decode {decode}"),
        "threads, prefill": (request.threads or request.threads_batch, usual_threads[1].value, f"prefill {prefill}"),
        "batch": (request.n_ubatch, f"{usual.n_ubatch} tokens", f"prefill {prefill}"),
        "KV cache": (request.kv_type_k or request.kv_type_v, "", f"decode {decode}"),
        "flash attention": (request.flash_attention, "on" if usual.flash_attention else "off", f"decode {decode}"),
    }
    if _is_exact(tuning):
        del measured["KV cache"]  # nothing else was tried
    return tuple(_reword(choice, tuning.measured_on, *measured.get(choice.what, ("", "", ""))) for choice in choices)


def _reword(choice: Choice, day: str, asked: object, usual_value: str, figures: str) -> Choice:
    if not figures or asked is not None:
        return choice
    if choice.value == usual_value:
        return replace(choice, reason=f"edge tune on {day} found nothing faster")
    return replace(choice, reason=f"measured by edge tune on {day}: {figures}")


def _is_exact(tuning: Tuning) -> bool:
    return tuning.kv_type_k in _EXACT and tuning.kv_type_v in _EXACT


def _compare(ours: float, usual: float) -> str:
    return f"{ours:,.1f} tokens/s, with the usual settings {usual:,.1f}"
