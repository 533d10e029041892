"""Context, KV type, batch and layers that fit into the memory there is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edge.plan.memory import KV_PAD, KV_TYPES, Footprint, Layout, Parts, Sizes
from edge.plan.receipt import Choice, MemoryEstimate, PlanRequest, size_text

if TYPE_CHECKING:
    from edge.device.profile import DeviceProfile
    from edge.formats.artifact import Artifact
    from edge.plan.placement import Target

__all__ = ["Fit", "Room", "can_quantise_values", "describe_shortage", "find_fit", "room_for"]

MAX_DEFAULT_CONTEXT = 8192
"""The context nobody asked for is at most this: longer ones cost memory that other programs may want."""
MIN_CONTEXT = 512
"""A chat in less than this is of no use, so nothing smaller is chosen unasked."""
_GOOD_CONTEXT = 2048
_BATCH, _SMALL_BATCH = 512, 128
_MIN_MARGIN, _MAX_MARGIN, _MARGIN_SHARE = 256 << 20, 2 << 30, 0.1
_GPU_FLASH_WIDTHS = (64, 80, 96, 112, 128, 256)
"""Widths of a head for which llama.cpp has fused attention on CUDA and on Metal alike."""


@dataclass(frozen=True, slots=True)
class Room:
    """Memory that a plan may use, safety margin already taken off.

    Attributes:
        host_bytes: main memory.
        device_bytes: the accelerator's; on a unified memory it is part of the main memory.
        is_unified: see above.
        margin_bytes: what is left free, in all.
    """

    host_bytes: int
    device_bytes: int
    is_unified: bool
    margin_bytes: int

    @property
    def total_bytes(self) -> int:
        """Everything that may be used."""
        return self.host_bytes if self.is_unified else self.host_bytes + self.device_bytes

    def holds(self, need: Footprint) -> bool:
        """Whether it fits."""
        if self.is_unified:
            return need.total <= self.host_bytes and need.device.total <= self.device_bytes
        return need.host.total <= self.host_bytes and need.device.total <= self.device_bytes


@dataclass(frozen=True, slots=True)
class Fit:
    """Settings that fit, with the reasons for them."""

    layout: Layout
    memory: MemoryEstimate
    context_choice: Choice
    kv_choice: Choice
    batch_choice: Choice


@dataclass(frozen=True, slots=True)
class _Step:
    """One thing to try: a KV type and batch, with contexts from `least` to `most`."""

    kv_type_k: str
    kv_type_v: str
    n_ubatch: int
    most: int
    least: int


def _margin(available_bytes: int) -> int:
    """What is left free for everything else: a tenth, but at least 256 MiB and at most 2 GiB."""
    return min(_MAX_MARGIN, max(_MIN_MARGIN, int(available_bytes * _MARGIN_SHARE)))


def room_for(device: DeviceProfile, target: Target) -> Room:
    """The memory that a plan for this accelerator may use."""
    available = device.memory.available_bytes
    margin = _margin(available)
    host = max(0, available - margin)
    if target.free_bytes is None:
        return Room(host, 0, is_unified=False, margin_bytes=margin)
    if target.is_unified:
        return Room(host, min(host, target.free_bytes), is_unified=True, margin_bytes=margin)
    own_margin = _margin(target.free_bytes)
    return Room(host, max(0, target.free_bytes - own_margin), is_unified=False, margin_bytes=margin + own_margin)


def find_fit(
    artifact: Artifact, layers: Sizes | None, request: PlanRequest, target: Target, room: Room, n_seq: int
) -> Fit | None:
    """The best settings that fit on an accelerator.

    Steps are tried from the best to the worst; the first that reaches its least context is taken, with the largest context
    it allows. Every step allows at most what the step before it wanted at least, which is why more memory never gives a
    smaller context.

    Returns:
        The settings, or None where nothing fits: with an accelerator this also means that not one layer does.
    """
    for step in _steps(artifact, request):
        best = _largest(layers, artifact, request, target, room, n_seq, step)
        if best is not None:
            return _explain(artifact, layers, request, room, step, best)
    return None


def _steps(artifact: Artifact, request: PlanRequest) -> list[_Step]:
    facts = artifact.facts
    only = facts.kv_type if facts else None
    kv_k, kv_v = request.kv_type_k or only or "f16", request.kv_type_v or only or "f16"
    usual, small = (_BATCH, _SMALL_BATCH) if request.n_ubatch is None else (request.n_ubatch, request.n_ubatch)
    if facts is not None and facts.chunk is not None:
        usual = small = facts.chunk
    limit = facts.n_ctx_max if facts else None
    if request.context is not None:
        wanted = -(-request.context // KV_PAD) * KV_PAD
        wanted = min(wanted, limit) if limit is not None else wanted
        return [_Step(kv_k, kv_v, batch, wanted, wanted) for batch in (usual, small)]
    if limit is not None:  # its buffers are that large, whatever is used of them
        return [_Step(kv_k, kv_v, usual, limit, limit)]
    trained = (facts.n_ctx_train if facts else 0) or MAX_DEFAULT_CONTEXT
    most = max(KV_PAD, min(trained, MAX_DEFAULT_CONTEXT) // KV_PAD * KV_PAD)
    good, least = min(most, _GOOD_CONTEXT), min(most, MIN_CONTEXT)
    steps = [_Step(kv_k, kv_v, usual, most, good), _Step(kv_k, kv_v, small, good, good)]
    is_free = request.kv_type_k is None and request.kv_type_v is None and request.flash_attention is not False
    if is_free and _can_quantise(artifact):
        steps.append(_Step("q8_0", "q8_0", small, good, least))
    else:
        steps.append(_Step(kv_k, kv_v, small, good, least))
    return steps


def _can_quantise(artifact: Artifact) -> bool:
    facts = artifact.facts
    if facts is None or facts.kv_type is not None:
        return False
    block = KV_TYPES["q8_0"][0]
    return facts.head_dim_k > 0 and facts.head_dim_k % block == facts.head_dim_v % block == 0


def _has_flash(artifact: Artifact, target: Target) -> bool:
    """Whether the fused attention works: on the CPU always, on a GPU for the usual widths of a head."""
    header = artifact.header
    if header is None or target.free_bytes is None:
        return True
    return header.head_dim_k == header.head_dim_v and header.head_dim_k in _GPU_FLASH_WIDTHS


def can_quantise_values(artifact: Artifact, request: PlanRequest, target: Target) -> bool:
    """Whether the values can be kept as asked for: anything but f16 needs the fused attention."""
    return request.kv_type_v in (None, "f16") or _has_flash(artifact, target)


def _layout(artifact: Artifact, target: Target, request: PlanRequest, n_seq: int, step: _Step) -> Layout:
    return Layout(
        n_ctx=step.most,
        n_seq=n_seq,
        n_ubatch=min(step.n_ubatch, step.most),
        kv_type_k=step.kv_type_k,
        kv_type_v=step.kv_type_v,
        flash_attention=request.flash_attention is not False and _has_flash(artifact, target),
        gpu_layers=0,
        accelerator=target.accelerator,
    )


def _largest(
    layers: Sizes | None,
    artifact: Artifact,
    request: PlanRequest,
    target: Target,
    room: Room,
    n_seq: int,
    step: _Step,
) -> Layout | None:
    """The step's largest context that fits, with as many layers on the accelerator as go with it."""
    layout = _layout(artifact, target, request, n_seq, step)
    if not layout.flash_attention and step.kv_type_v != "f16":
        return None  # quantised values need the fused attention
    if layers is None:
        return layout if room.holds(_unknown(artifact)) else None
    if artifact.facts is not None and artifact.facts.n_ctx_max is not None:  # its buffers have one size only
        return _with_layers(layers, layout, request, target, room)
    # Whether it fits is monotone in the context, so the largest one is found by halving the range.
    low, high = step.least // KV_PAD, step.most // KV_PAD
    best: Layout | None = None
    while low <= high:
        middle = (low + high) // 2
        placed = _with_layers(layers, replace(layout, n_ctx=middle * KV_PAD), request, target, room)
        if placed is None:
            high = middle - 1
        else:
            best, low = placed, middle + 1
    return best


def _with_layers(layers: Sizes, layout: Layout, request: PlanRequest, target: Target, room: Room) -> Layout | None:
    """The layout with the most layers on the accelerator that fit there, if the rest fits into main memory."""
    n_all = layers.n_layer + 1
    if target.free_bytes is None:
        counts = [0]
    elif request.gpu_layers is not None:
        counts = [n_all if request.gpu_layers < 0 else min(request.gpu_layers, n_all)]
    else:
        counts = list(range(n_all, 0, -1))
    for count in counts:
        tried = replace(layout, gpu_layers=count)
        need = layers.footprint(tried)
        if need.device.total <= room.device_bytes or not count:
            return tried if room.holds(need) else None
    return None


def _unknown(artifact: Artifact) -> Footprint:
    """A model of which only the size is known."""
    return Footprint(Parts(artifact.size_bytes, 0, 0), Parts(0, 0, 0))


def _explain(artifact: Artifact, layers: Sizes | None, request: PlanRequest, room: Room, step: _Step, layout: Layout) -> Fit:
    """A layout that fits, with its estimate and the reasons for it."""
    need = layers.footprint(layout) if layers is not None else _unknown(artifact)
    only = artifact.facts.kv_type if artifact.facts else None
    memory = MemoryEstimate(
        weights_bytes=need.host.weights + need.device.weights,
        kv_bytes=need.host.kv + need.device.kv,
        compute_bytes=need.host.compute + need.device.compute,
        total_bytes=need.total,
        available_bytes=room.total_bytes,
        device_bytes=0 if room.is_unified else need.device.total,
        device_available_bytes=0 if room.is_unified else room.device_bytes,
    )
    return Fit(
        layout,
        memory,
        Choice("context", f"{layout.n_ctx:,} tokens", _context_reason(artifact, request, layout)),
        Choice("KV cache", _kv_text(layout), _kv_reason(layers, request, layout, only)),
        Choice("batch", f"{layout.n_ubatch} tokens", _batch_reason(artifact, request, step)),
    )


def _context_reason(artifact: Artifact, request: PlanRequest, layout: Layout) -> str:
    trained = artifact.facts.n_ctx_train if artifact.facts else 0
    limit = artifact.facts.n_ctx_max if artifact.facts else None
    if limit is not None and request.context is None:
        return "all that the model was built for"
    if request.context is not None:
        reason = "asked for"
        if layout.n_ctx != request.context:
            reason = f"{request.context:,} asked for, in steps of {KV_PAD}"
        if trained and layout.n_ctx > trained:
            reason += f"; the model was trained for {trained:,}, so it may lose the thread beyond that"
        return reason
    if trained and layout.n_ctx >= trained // KV_PAD * KV_PAD:
        return "all that the model was trained for"
    if layout.n_ctx >= MAX_DEFAULT_CONTEXT:
        return f"the usual limit; the model was trained for {trained:,}" if trained else "the usual limit"
    return f"as much as fits into memory; the model was trained for {trained:,}"


def _kv_text(layout: Layout) -> str:
    if layout.kv_type_k == layout.kv_type_v:
        return layout.kv_type_k
    return f"K {layout.kv_type_k}, V {layout.kv_type_v}"


def _kv_reason(layers: Sizes | None, request: PlanRequest, layout: Layout, only: str | None) -> str:
    size = f"; {layers.cell_bytes(layout.kv_type_k, layout.kv_type_v):,} bytes a token" if layers is not None else ""
    if request.kv_type_k is not None or request.kv_type_v is not None:
        return f"asked for{size}"
    if only is not None:
        return f"the one way in which this model keeps it; every sequence has a buffer of its own{size}"
    if layout.kv_type_k == "f16":
        return f"exact, and the fastest{size}"
    return f"to save memory: with f16 less than {_GOOD_CONTEXT:,} tokens fit; it makes the CPU slower{size}"


def _batch_reason(artifact: Artifact, request: PlanRequest, step: _Step) -> str:
    if artifact.facts is not None and artifact.facts.chunk is not None:
        return "what the model was built for"
    if request.n_ubatch is not None:
        return "asked for"
    if step.n_ubatch == _BATCH:
        return "prompts are computed in pieces of this many tokens"
    return f"smaller than the usual {_BATCH}, to save memory for buffers"


def describe_shortage(
    device: DeviceProfile,
    artifact: Artifact,
    layers: Sizes | None,
    request: PlanRequest,
    targets: list[Target],
    n_seq: int,
) -> tuple[str, str]:
    """Why nothing fits, with numbers, and the nearest plan that would.

    Returns:
        Message and hint for a ModelTooLargeError.
    """
    # Without a wish for layers the CPU was tried last, and even there it did not fit.
    target = targets[0] if request.gpu_layers else targets[-1]
    room = room_for(device, target)
    step = _steps(artifact, request)[-1]
    smallest = replace(_layout(artifact, target, request, n_seq, step), n_ctx=step.least)
    if target.free_bytes is not None and layers is not None:
        wanted = request.gpu_layers if request.gpu_layers is not None else -1
        smallest = replace(smallest, gpu_layers=layers.n_layer + 1 if wanted < 0 else min(wanted, layers.n_layer + 1))
    need = layers.footprint(smallest) if layers is not None else _unknown(artifact)
    n_tokens = request.context or smallest.n_ctx  # as asked for, though cells come in steps
    what = f"{artifact.name} with a context of {n_tokens:,} tokens"
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
    return message, _nearest(artifact, layers, request, targets, device, n_seq)


def _nearest(
    artifact: Artifact,
    layers: Sizes | None,
    request: PlanRequest,
    targets: list[Target],
    device: DeviceProfile,
    n_seq: int,
) -> str:
    """What to ask for instead: the first change that would fit, from the smallest one on."""

    def fits(changed: PlanRequest) -> Layout | None:
        for target in targets:
            fit = find_fit(artifact, layers, changed, target, room_for(device, target), n_seq)
            if fit is not None:
                return fit.layout
        return None

    offers: list[str] = []
    if request.context is not None:
        for kv_type in ("q8_0", "q4_0"):
            if (request.kv_type_k, request.kv_type_v) in ((None, None), ("f16", "f16")) and _can_quantise(artifact):
                smaller = replace(request, kv_type_k=kv_type, kv_type_v=kv_type)
                if fits(smaller) is not None:
                    offers.append(f"--kv-type {kv_type}")
                    break
        trained = artifact.facts.n_ctx_train if artifact.facts else 0
        layout = _largest_context(request, trained, fits)
        if layout is not None:
            offers.append(f"--context {layout}")
    if not offers and request.gpu_layers and layers is not None:
        n_all = layers.n_layer + 1
        wanted = n_all if request.gpu_layers < 0 else min(request.gpu_layers, n_all)
        count = next((n for n in range(wanted - 1, 0, -1) if fits(replace(request, gpu_layers=n)) is not None), None)
        offers.append(f"--gpu-layers {count if count is not None else 0}")
    if offers:
        return f"This would fit: {' or '.join(offers)}."
    raise_limit = " or a higher memory limit for the container" if device.memory.limit else ""
    return f"Close other programs, or use a smaller model or one with fewer bits a weight{raise_limit}."


def _largest_context(request: PlanRequest, trained: int, fits: Callable[[PlanRequest], Layout | None]) -> int | None:
    """The largest context below the one asked for that fits, of what the model was trained for; None where even the
    smallest does not."""
    low, high = 1, -(-(request.context or 0) // KV_PAD) - 1
    if trained:
        high = min(high, max(1, trained // KV_PAD))
    best: int | None = None
    while low <= high:
        middle = (low + high) // 2
        if fits(replace(request, context=middle * KV_PAD)) is None:
            high = middle - 1
        else:
            best, low = middle * KV_PAD, middle + 1
    return best
