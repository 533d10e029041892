"""Plans that do not fit: why, with numbers, and the nearest one that would."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from edge.errors import ModelTooLargeError
from edge.plan.memory import KV_PAD, is_smaller
from edge.units import size_text

if TYPE_CHECKING:
    from edge.plan.fitting import Fitting
    from edge.plan.placement import Target

__all__ = ["shortage"]


def shortage(fitting: Fitting, targets: Sequence[Target]) -> ModelTooLargeError:
    """Return the error of a model that fits on none of these accelerators.

    Args:
        fitting: the model, and the request that does not fit.
        targets: the accelerators that were tried.
    """
    request, device, name = fitting.request, fitting.device, fitting.artifact.name
    # Without a wish for layers the CPU was tried last, and even there it did not fit.
    target = targets[0] if request.gpu_layers else targets[-1]
    room, smallest = fitting.room(target), fitting.smallest(target)
    need = fitting.memory.footprint(smallest)
    n_tokens = request.context or smallest.n_ctx  # as asked for, though cells come in steps
    what = f"{name} with a context of {n_tokens:,} tokens"
    is_main_short = room.is_unified and need.total > room.host_bytes
    if target.free_bytes is not None and need.device.total > room.device_bytes and not is_main_short:
        message = (
            f"{what} and {smallest.gpu_layers} layers on {target.reason} needs {size_text(need.device.total)} there, and "
            f"{size_text(room.device_bytes)} may be used."
        )
    else:
        # On a unified memory everything comes out of main memory, elsewhere only the host's part.
        parts = [need.host, need.device] if room.is_unified else [need.host]
        where = device.memory.limit or "this machine's memory"
        elsewhere = "" if room.is_unified or not need.device.total else f" of main memory, beside {target.reason},"
        message = (
            f"{what} needs {size_text(sum(part.total for part in parts))}{elsewhere} (weights "
            f"{size_text(sum(part.weights for part in parts))}, KV cache {size_text(sum(part.kv for part in parts))}), and "
            f"{size_text(room.host_bytes)} may be used: {size_text(device.memory.available_bytes)} of "
            f"{where} is free, less a margin for other programs."
        )
    return ModelTooLargeError(message, _nearest(fitting, targets))


def _nearest(fitting: Fitting, targets: Sequence[Target]) -> str:
    """Say what to ask for instead: the first change that would fit, from the smallest one on."""

    def fits(**changes: Any) -> bool:
        changed = replace(fitting, request=replace(fitting.request, **changes))
        return any(changed.find(target) is not None for target in targets)

    request, offers = fitting.request, []
    if request.context is not None:
        asked = [name for name in (request.kv_type_k, request.kv_type_v) if name is not None]
        is_exact = not any(is_smaller(name, "f16") for name in asked)
        smaller = fitting.smaller_kv_types("f32" if "f32" in asked else "") if is_exact else ()
        kv_type = next((name for name in smaller if fits(kv_type_k=name, kv_type_v=name)), None)
        if kv_type is not None:
            offers.append(f"--kv-type {kv_type}")
        # The larger the context, the less it fits; nobody is advised to go beyond the training.
        low, high = 1, -(-request.context // KV_PAD) - 1
        if fitting.artifact.facts.n_ctx_train:
            high = min(high, max(1, fitting.artifact.facts.n_ctx_train // KV_PAD))
        while low <= high:
            middle = (low + high) // 2
            if fits(context=middle * KV_PAD):
                low = middle + 1
            else:
                high = middle - 1
        if high > 0:
            offers.append(f"--context {high * KV_PAD}")
    if not offers and request.gpu_layers:
        wanted = fitting.smallest(targets[0]).gpu_layers
        offers.append(f"--gpu-layers {next((n for n in range(wanted - 1, 0, -1) if fits(gpu_layers=n)), 0)}")
    if offers:
        return f"This would fit: {' or '.join(offers)}."
    raise_limit = " or a higher memory limit for the container" if fitting.device.memory.limit else ""
    return f"Close other programs, or use a smaller model or one with fewer bits a weight{raise_limit}."
