"""Applies `edge tune` results to the plan. The user's request wins; results that do not fit or cost context are left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from edge.plan.speed import TURN_PROMPT, TURN_REPLY
from edge.units import size_text

if TYPE_CHECKING:
    from edge.device.profile import Cpu
    from edge.plan.memory import Layout
    from edge.plan.placement import Target
    from edge.plan.receipt import Choice, PlanRequest
    from edge.plan.tuning import Tuning
    from edge.registry import EngineRow

__all__ = ["compared_text", "engine_text", "explain_tuning", "measured_target", "speeds_text", "tuned_request"]

_EXACT = ("f32", "f16")


def tuned_request(tuning: Tuning | None, row: EngineRow, target: Target, request: PlanRequest, cpu: Cpu) -> PlanRequest | None:
    """Return the request with measured settings where it asks for nothing; None if none were measured for this engine there."""
    if tuning is None or (tuning.backend, tuning.accelerator) != (row.name, target.accelerator):
        return None
    if tuning.is_quick:  # it measured the usual settings
        return request
    if max(tuning.threads, tuning.threads_batch) > cpu.usable_logical:
        return None  # the fingerprint rules this out, and an impossible number of threads would be costly
    changed = request
    if request.threads is None:
        changed = replace(changed, threads=tuning.threads, threads_batch=request.threads_batch or tuning.threads_batch)
    if request.n_ubatch is None:
        changed = replace(changed, n_ubatch=tuning.n_ubatch)
    if (request.kv_type_k, request.kv_type_v) == (None, None) and not _is_exact(tuning):
        changed = replace(changed, kv_type_k=tuning.kv_type_k, kv_type_v=tuning.kv_type_v)
    is_exact = changed.kv_type_v in (None, "f16")  # anything else needs flash attention
    if request.flash_attention is None and is_exact and not tuning.flash_attention:
        changed = replace(changed, flash_attention=False)
    return changed


def measured_target(tuning: Tuning | None, row: EngineRow, targets: Sequence[Target], request: PlanRequest) -> Target | None:
    """Return the accelerator that was measured to be the fastest, if it is not the first anyway and no other is asked for.

    Args:
        tuning: measured settings.
        row: the engine.
        targets: accelerators to try, in the usual order; at least one.
        request: the user's.
    """
    if tuning is None or tuning.backend != row.name or request.require is not None or request.gpu_layers is not None:
        return None
    return next((target for target in targets[1:] if target.accelerator == tuning.accelerator), None)


def speeds_text(tuning: Tuning) -> str:
    """Return the reason for an accelerator that was measured to be the fastest."""
    speeds = _compare(tuning.decode_tokens_per_s, tuning.default_decode_tokens_per_s)
    return f"measured {tuning.source}: decode {speeds}"


def engine_text(tuning: Tuning) -> str:
    """Return the reason for an engine that was measured to be the fastest: how much faster, and what it loses."""
    ours = tuning.engine(tuning.backend, tuning.accelerator)
    prefill = tuning.prefill_tokens_per_s / tuning.default_prefill_tokens_per_s
    decode = tuning.decode_tokens_per_s / tuning.default_decode_tokens_per_s
    other = next((item for item in tuning.engines if item.divergence == 0 and item.backend != tuning.backend), None)
    text = (
        f"measured {tuning.source}: a turn of {TURN_PROMPT} new tokens and {TURN_REPLY} of reply takes {tuning.turn_s:.2f} s, "
        f"with {other.backend if other is not None else 'the usual settings'} {tuning.default_turn_s:.2f} s "
        f"({prefill:.1f} times faster prefill, {decode:.1f} times decode)"
    )
    if ours is not None and other is not None and ours.peak_bytes and other.peak_bytes:
        text += f"; {size_text(ours.peak_bytes)} of memory instead of {size_text(other.peak_bytes)}"
    if tuning.divergence:
        text += f"; the same weights, {tuning.divergence:.4f} nats apart by rounding"
    if ours is not None and other is not None and ours.exact is not None and other.exact is not None:
        text += f" ({ours.exact:.4f} from the weights computed exactly, {other.backend} {other.exact:.4f})"
    return text


def compared_text(tuning: Tuning) -> str:
    """Return what the engine that was chosen was compared with, to follow another reason; "" if it is the only one."""
    others = [item for item in tuning.engines if (item.backend, item.accelerator) != (tuning.backend, tuning.accelerator)]
    if not others:
        return ""
    times = ", ".join(f"{item.backend} on {item.accelerator} {item.turn_s:.2f} s" for item in others)
    return f"; measured {tuning.source}: a turn takes {tuning.turn_s:.2f} s, with {times}"


def explain_tuning(
    choices: Sequence[Choice], tuning: Tuning, request: PlanRequest, usual: Layout, usual_threads: Sequence[Choice]
) -> tuple[Choice, ...]:
    """Return the lines of a receipt with the reasons of the measured ones.

    Args:
        choices: of the plan, measured settings included.
        tuning: measured settings, which the plan follows.
        request: the user's, without them.
        usual: the layout that would have been chosen without them.
        usual_threads: likewise, for decode and prefill.
    """
    if tuning.is_quick:  # only the engines were compared
        return tuple(choices)
    decode = _compare(tuning.decode_tokens_per_s, tuning.default_decode_tokens_per_s)
    prefill = _compare(tuning.prefill_tokens_per_s, tuning.default_prefill_tokens_per_s)
    # Line of the receipt -> what was asked for, the usual value, the figures.
    measured: dict[str, tuple[object, str, str]] = {
        "threads": (request.threads, usual_threads[0].value, f"decode {decode}"),
        "threads, prefill": (request.threads or request.threads_batch, usual_threads[1].value, f"prefill {prefill}"),
        "batch": (request.n_ubatch, f"{usual.n_ubatch} tokens", f"prefill {prefill}"),
        "flash attention": (request.flash_attention, "on" if usual.flash_attention else "off", f"decode {decode}"),
    }
    if not _is_exact(tuning):  # otherwise no other type was tried
        measured["KV cache"] = (request.kv_type_k or request.kv_type_v, "", f"decode {decode}")

    def explain(choice: Choice) -> Choice:
        asked, usual_value, figures = measured.get(choice.what, ("nothing was measured", "", ""))
        if asked is not None:
            return choice
        if choice.value == usual_value:
            return replace(choice, reason=f"edge tune on {tuning.measured_on} found nothing faster")
        return replace(choice, reason=f"measured {tuning.source}: {figures}")

    return tuple(explain(choice) for choice in choices)


def _is_exact(tuning: Tuning) -> bool:
    return tuning.kv_type_k in _EXACT and tuning.kv_type_v in _EXACT


def _compare(ours: float, usual: float) -> str:
    return f"{ours:,.1f} tokens/s, with the usual settings {usual:,.1f}"
