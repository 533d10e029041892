"""Context, KV type, batch and layers that fit into the free memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edge.plan.memory import KV_BLOCKS, KV_PAD, Footprint, Layout, is_smaller
from edge.plan.receipt import Choice, MemoryEstimate

if TYPE_CHECKING:
    from edge.device.profile import DeviceProfile
    from edge.formats.artifact import Artifact
    from edge.plan.memory import MemoryModel
    from edge.plan.placement import Target
    from edge.plan.receipt import PlanRequest

__all__ = ["Fit", "Fitting", "Room", "Step", "memory_margin"]

MAX_DEFAULT_CONTEXT = 8192
"""The largest context that is chosen unasked: longer ones take memory that other programs may want."""
MIN_CONTEXT = 512
"""The smallest context that is chosen unasked: a chat in less is of no use."""
_GOOD_CONTEXT = 2048
_BATCH, _SMALL_BATCH = 512, 128
_MIN_MARGIN, _MAX_MARGIN, _MARGIN_SHARE = 256 << 20, 2 << 30, 0.1
_GPU_FLASH_WIDTHS = (64, 80, 96, 112, 128, 256)
"""Widths of a head for which llama.cpp has flash attention on CUDA and on Metal alike."""


@dataclass(frozen=True, slots=True)
class Room:
    """Memory that a plan may use, after the safety margin.

    Attributes:
        host_bytes: main memory.
        device_bytes: the accelerator's; on a unified memory it is part of the main memory.
        is_unified: see above.
        margin_bytes: memory that is left free, in all.
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
        """Return whether a model fits."""
        host = need.total if self.is_unified else need.host.total
        return host <= self.host_bytes and need.device.total <= self.device_bytes


@dataclass(frozen=True, slots=True)
class Fit:
    """Settings that fit on an accelerator, with the reasons for them."""

    target: Target
    room: Room
    layout: Layout
    memory: MemoryEstimate
    context_choice: Choice
    kv_choice: Choice
    batch_choice: Choice


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to try: a KV type and batch, with contexts from `least` to `most`."""

    kv_type_k: str
    kv_type_v: str
    n_ubatch: int
    most: int
    least: int


@dataclass(frozen=True, slots=True)
class Fitting:
    """The search for settings of a model that fit.

    Attributes:
        device: the machine.
        artifact, memory: the model, and the memory that it takes.
        request: the user's.
        n_seq: sequences side by side.
        kv_types: that the engine has, the usual one first.
    """

    device: DeviceProfile
    artifact: Artifact
    memory: MemoryModel
    request: PlanRequest
    n_seq: int
    kv_types: tuple[str, ...]

    def room(self, target: Target) -> Room:
        """Return the memory that a plan for this accelerator may use."""
        available = self.device.memory.available_bytes
        margin = memory_margin(available)
        host = max(0, available - margin)
        if target.free_bytes is None:
            return Room(host, 0, is_unified=False, margin_bytes=margin)
        if target.is_unified:
            return Room(host, min(host, target.free_bytes), is_unified=True, margin_bytes=margin)
        own_margin = memory_margin(target.free_bytes)
        return Room(host, max(0, target.free_bytes - own_margin), is_unified=False, margin_bytes=margin + own_margin)

    def find(self, target: Target) -> Fit | None:
        """Find the best settings that fit on an accelerator.

        Steps are tried from the best to the worst; the first that reaches its least context is taken, with the largest context
        it allows. Every step allows at most the least context of the step before it, so more memory never gives a smaller one.

        Returns:
            The settings, or None where nothing fits: on a GPU, not even one layer.
        """
        for step in self.steps():
            layout = self._largest(target, step)
            if layout is not None:
                return self._explain(target, step, layout)
        return None

    def steps(self) -> list[Step]:
        """Return what is worth trying, the best first."""
        facts, request = self.artifact.facts, self.request
        kv_k, kv_v = request.kv_type_k or facts.kv_type or "f16", request.kv_type_v or facts.kv_type or "f16"
        usual, small = facts.chunk or request.n_ubatch or _BATCH, facts.chunk or request.n_ubatch or _SMALL_BATCH
        if request.context is not None:
            wanted = -(-request.context // KV_PAD) * KV_PAD
            wanted = min(wanted, facts.n_ctx_max or wanted)
            return [Step(kv_k, kv_v, batch, wanted, wanted) for batch in (usual, small)]
        if facts.n_ctx_max is not None:  # its buffers have that size, whatever is used of them
            return [Step(kv_k, kv_v, usual, facts.n_ctx_max, facts.n_ctx_max)]
        most = max(KV_PAD, min(facts.n_ctx_train or MAX_DEFAULT_CONTEXT, MAX_DEFAULT_CONTEXT) // KV_PAD * KV_PAD)
        good, least = min(most, _GOOD_CONTEXT), min(most, MIN_CONTEXT)
        is_free = (request.kv_type_k, request.kv_type_v) == (None, None) and request.flash_attention is not False
        smaller = next(iter(self.smaller_kv_types()), None) if is_free else None
        last = (smaller, smaller) if smaller else (kv_k, kv_v)
        return [Step(kv_k, kv_v, usual, most, good), Step(kv_k, kv_v, small, good, good), Step(*last, small, good, least)]

    def can_quantise_values(self, target: Target) -> bool:
        """Return whether values can be stored as asked for: anything but f16 needs flash attention."""
        return self.request.kv_type_v in (None, "f16") or self._has_flash(target)

    def smaller_kv_types(self, than: str = "") -> tuple[str, ...]:
        """Return the types of keys and values that save memory: none if heads do not consist of whole blocks.

        Args:
            than: a type; "" is the usual one.
        """
        facts = self.artifact.facts
        if facts.kv_type is not None or facts.head_dim_k <= 0:
            return ()
        widths = (facts.head_dim_k, facts.head_dim_v)
        smaller = [name for name in self.kv_types if is_smaller(name, than or self.kv_types[0])]
        return tuple(name for name in smaller if not any(width % KV_BLOCKS[name][0] for width in widths))

    def smallest(self, target: Target) -> Layout:
        """Return the settings that take the least memory, with the layers on the accelerator that were asked for."""
        step = self.steps()[-1]
        layout = replace(self._layout(target, step), n_ctx=step.least)
        return replace(layout, gpu_layers=self._layer_counts(target)[0])

    def _has_flash(self, target: Target) -> bool:
        """Return whether flash attention works: on a CPU and in a folder always, else for the usual widths of a head."""
        facts = self.artifact.facts
        if target.free_bytes is None or facts.kv_type is not None or not facts.n_layer:
            return True
        return facts.head_dim_k == facts.head_dim_v and facts.head_dim_k in _GPU_FLASH_WIDTHS

    def _layout(self, target: Target, step: Step) -> Layout:
        return Layout(
            n_ctx=step.most,
            n_seq=self.n_seq,
            n_ubatch=min(step.n_ubatch, step.most),
            kv_type_k=step.kv_type_k,
            kv_type_v=step.kv_type_v,
            flash_attention=self.request.flash_attention is not False and self._has_flash(target),
            gpu_layers=0,
            accelerator=target.accelerator,
        )

    def _largest(self, target: Target, step: Step) -> Layout | None:
        """Return the step's largest context that fits, with as many layers on the accelerator as go with it."""
        layout, room = self._layout(target, step), self.room(target)
        if not layout.flash_attention and step.kv_type_v != "f16":
            return None  # quantised values need flash attention
        if self.artifact.facts.n_ctx_max is not None:  # its buffers have one size only
            return self._with_layers(layout, target, room)
        # The larger the context, the less it fits, so the largest one is found by halving the range.
        low, high = step.least // KV_PAD, step.most // KV_PAD
        best: Layout | None = None
        while low <= high:
            middle = (low + high) // 2
            placed = self._with_layers(replace(layout, n_ctx=middle * KV_PAD), target, room)
            if placed is None:
                high = middle - 1
            else:
                best, low = placed, middle + 1
        return best

    def _layer_counts(self, target: Target) -> list[int]:
        """Return the numbers of layers to try on an accelerator, the largest first; the output layer counts as one."""
        n_all = self.memory.n_layer + 1
        if target.free_bytes is None:
            return [0]
        if self.request.gpu_layers is not None:
            return [n_all if self.request.gpu_layers < 0 else min(self.request.gpu_layers, n_all)]
        return list(range(n_all, 0, -1))

    def _with_layers(self, layout: Layout, target: Target, room: Room) -> Layout | None:
        """Put the most layers that fit on the accelerator; None if the rest does not fit into main memory."""
        for count in self._layer_counts(target):
            tried = replace(layout, gpu_layers=count)
            need = self.memory.footprint(tried)
            if need.device.total <= room.device_bytes or not count:
                return tried if room.holds(need) else None
        return None

    def _explain(self, target: Target, step: Step, layout: Layout) -> Fit:
        """Return a layout that fits, with its estimate and the reasons for it."""
        need, room = self.memory.footprint(layout), self.room(target)
        memory = MemoryEstimate(
            weights_bytes=need.host.weights + need.device.weights,
            kv_bytes=need.host.kv + need.device.kv,
            compute_bytes=need.host.compute + need.device.compute,
            total_bytes=need.total,
            available_bytes=room.total_bytes,
            device_bytes=0 if room.is_unified else need.device.total,
            device_available_bytes=0 if room.is_unified else room.device_bytes,
        )
        kv_type = layout.kv_type_k if layout.kv_type_k == layout.kv_type_v else f"K {layout.kv_type_k}, V {layout.kv_type_v}"
        return Fit(
            target,
            room,
            layout,
            memory,
            Choice("context", f"{layout.n_ctx:,} tokens", self._context_reason(layout)),
            Choice("KV cache", kv_type, self._kv_reason(layout)),
            Choice("batch", f"{layout.n_ubatch} tokens", self._batch_reason(step)),
        )

    def _context_reason(self, layout: Layout) -> str:
        facts, asked = self.artifact.facts, self.request.context
        trained = facts.n_ctx_train
        if asked is not None:
            reason = "asked for" if layout.n_ctx == asked else f"{asked:,} asked for, in steps of {KV_PAD}"
            if trained and layout.n_ctx > trained:
                reason += f"; the model was trained for {trained:,}, so it may lose the thread beyond that"
            return reason
        if facts.n_ctx_max is not None:
            return "all that the model was built for"
        if trained and layout.n_ctx >= trained // KV_PAD * KV_PAD:
            return "all that the model was trained for"
        if layout.n_ctx >= MAX_DEFAULT_CONTEXT:
            return f"the usual limit; the model was trained for {trained:,}" if trained else "the usual limit"
        return f"as much as fits into memory; the model was trained for {trained:,}"

    def _kv_reason(self, layout: Layout) -> str:
        cell_bytes = self.memory.cell_bytes(layout.kv_type_k, layout.kv_type_v)
        size = f"; {cell_bytes:,} bytes a token" if cell_bytes else ""
        if self.artifact.facts.kv_type is not None:
            return f"the only type that this model can store; every sequence has a buffer of its own{size}"
        if self.request.kv_type_k is not None or self.request.kv_type_v is not None:
            return f"asked for{size}"
        if layout.kv_type_k == "f16":
            return f"exact, and the fastest{size}"
        return f"to save memory: with f16 less than {_GOOD_CONTEXT:,} tokens fit; it makes the CPU slower{size}"

    def _batch_reason(self, step: Step) -> str:
        if self.artifact.facts.chunk is not None:
            return "the size that the model was built for"
        if self.request.n_ubatch is not None:
            return "asked for"
        if step.n_ubatch == _BATCH:
            return "prompts are computed in chunks of this many tokens"
        return f"smaller than the usual {_BATCH}, to save memory for buffers"


def memory_margin(available_bytes: int) -> int:
    """Return the memory to leave free for everything else: a tenth, but at least 256 MiB and at most 2 GiB."""
    return min(_MAX_MARGIN, max(_MIN_MARGIN, int(available_bytes * _MARGIN_SHARE)))
