"""From a device, a model and a request to a plan, before anything is loaded: `make_plan`.

What does not fit is refused with numbers and with the nearest plan that does, not by the kernel. What was asked for is never
changed in silence: it is done, or refused. The pieces:

    receipt.py      the request and the plan, as values           memory.py   how much a model takes
    placement.py    which engine, which accelerator               fitting.py  context, KV type and layers that fit
    tuned.py        what edge tune measured, put in the place of the usual choice

On one accelerator, more free memory never gives a smaller context.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from edge.errors import BackendUnavailableError, ModelTooLargeError, UsageError
from edge.names import Accelerator
from edge.plan.apply_tuning import apply_tuning, explain_tuning, prefer_measured
from edge.plan.fitting import Fit, Room, can_quantise_values, describe_shortage, find_fit, room_for
from edge.plan.memory import KV_TYPES, Layers, Sizes, Whole, model_layers
from edge.plan.placement import EngineRow, Missing, Target, choose_engine, find_targets
from edge.plan.receipt import Choice, MemoryEstimate, Plan, PlanRequest, size_text

if TYPE_CHECKING:
    from edge.backends.llamacpp.canary import Safety
    from edge.device.profile import Cpu, DeviceProfile
    from edge.formats.artifact import Artifact
    from edge.formats.facts import ModelFacts
    from edge.plan.tuning import Lookup

__all__ = ["Accelerator", "Choice", "MemoryEstimate", "Plan", "PlanRequest", "make_plan"]

_MAX_SEQUENCES = 255
_DEFAULT_SEQUENCES = {"gguf": 4, "onnx": 2, "coreml": 2}
"""By format. In llama.cpp all share one KV cache; elsewhere each has a buffer of its own for the whole context."""
_MAX_UBATCH = 16384
# Efficiency cores join in for prefill where the team gains this much although everybody waits for the slowest.
_WORTH_THE_SLOW_CORES = 1.25


def make_plan(
    device: DeviceProfile,
    artifact: Artifact,
    request: PlanRequest | None = None,
    *,
    safety: Safety | None = None,
    tuned: Lookup | None = None,
) -> Plan:
    """Decide how a model runs on a device.

    Args:
        device: from `edge.device.probe`.
        artifact: the model.
        request: what was asked for; None leaves everything to the plan.
        safety: what the canary found out about the engine's build; None counts as safe.
        tuned: what `edge tune` measured, from `edge.plan.tuning.look_up`; what was asked for wins over it.

    Returns:
        The plan, which by its own estimate fits into memory.

    Raises:
        UsageError: the request has a value that cannot be, or two that exclude each other, or one that this model or
            accelerator rules out.
        BackendUnavailableError: the backend or accelerator asked for is not here, or has no room for a single layer.
        ModelTooLargeError: the model, with what was asked for, does not fit; the message has the numbers, the hint the
            nearest plan that fits.
    """
    request = request or PlanRequest()
    layers = _sizes(artifact)
    _check_request(request, device.cpu, artifact)
    row, engine_reason = choose_engine(device, artifact, request)
    targets, missing = find_targets(device, row, request)
    threads, threads_batch = _threads(device.cpu, request)
    n_seq = request.n_seq or _DEFAULT_SEQUENCES[artifact.format]
    target, room, fit, passed_over = _place(device, artifact, layers, request, targets, n_seq)
    faster_first, why_faster = prefer_measured(tuned, row, targets, request)
    if why_faster:
        moved = _place(device, artifact, layers, request, faster_first, n_seq)
        if moved[0] is faster_first[0] and moved[2].layout.n_ctx >= fit.layout.n_ctx:
            targets, (target, room, fit, passed_over) = faster_first, moved
        else:
            why_faster = ""
    usual, tuning = fit, None
    better = apply_tuning(tuned, row, target, request, device.cpu)
    if better is not None:
        faster = find_fit(artifact, layers, better.request, target, room, n_seq)
        if faster is not None and faster.layout.n_ctx >= fit.layout.n_ctx:
            tuning, fit = better.tuning, faster
            threads, threads_batch = _threads(device.cpu, better.request)
    is_llamacpp = row.name == "llamacpp"
    if not is_llamacpp:  # one team of threads for both
        threads_batch = replace(threads_batch, value=threads.value, reason="as for decode: this engine has one number for both")
    use_mmap = not (target.accelerator == "cuda" and target.is_unified)
    choices = (
        Choice("backend", row.name, engine_reason),
        _accelerator_choice(target, missing, passed_over, request, why_faster),
        *_layer_choice(layers, target, fit, request),
        fit.context_choice,
        fit.kv_choice,
        _memory_choice(fit, room, device),
        threads,
        threads_batch,
        fit.batch_choice,
        *(_llamacpp_choices(layers, fit, request, use_mmap, safety) if is_llamacpp else ()),
        Choice(
            "sequences", str(n_seq), "asked for" if request.n_seq else "conversations that stay in the KV cache side by side"
        ),
    )
    choices = explain_tuning(choices, tuned, tuning, request, usual.layout, _threads(device.cpu, request))
    return Plan(
        backend=row.name,
        accelerator=target.accelerator,
        artifact=artifact,
        n_ctx=fit.layout.n_ctx,
        n_seq=n_seq,
        n_threads=int(threads.value),
        n_threads_batch=int(threads_batch.value),
        n_batch=fit.layout.n_ubatch,
        n_ubatch=fit.layout.n_ubatch,
        gpu_layers=fit.layout.gpu_layers,
        kv_type_k=fit.layout.kv_type_k,
        kv_type_v=fit.layout.kv_type_v,
        flash_attention=fit.layout.flash_attention,
        use_mmap=use_mmap,
        use_mlock=False,
        use_extra_buffers=safety.use_extra_buffers if safety is not None else True,
        memory=fit.memory,
        choices=choices,
        fallbacks=_fallbacks(row, target, targets, request),
    )


def _fallbacks(row: EngineRow, target: Target, targets: list[Target], request: PlanRequest) -> tuple[Accelerator, ...]:
    """What else may compute, for an engine that tries an accelerator before it uses it. What is required is not changed."""
    if not row.tries or request.require is not None:
        return ()
    return tuple(other.accelerator for other in targets[targets.index(target) + 1 :])


def _sizes(artifact: Artifact) -> Sizes | None:
    """What decides how much memory a model takes; None where only its size is known."""
    if artifact.header is not None:
        return model_layers(artifact.header)
    return Whole(artifact.facts, n_spare=artifact.format == "coreml") if artifact.facts is not None else None


def _check_request(request: PlanRequest, cpu: Cpu, artifact: Artifact) -> None:
    """Refuse what cannot be done on any device, or on this one's CPU."""
    if request.context is not None and request.context < 1:
        raise UsageError(f"A context of {request.context} tokens is not possible.", "Ask for 512 or more.")
    if request.n_seq is not None and not 1 <= request.n_seq <= _MAX_SEQUENCES:
        raise UsageError(f"{request.n_seq} sequences are not possible.", f"Use 1 to {_MAX_SEQUENCES}.")
    if request.gpu_layers is not None and request.gpu_layers < -1:
        raise UsageError(f"{request.gpu_layers} layers are not possible.", "Use -1 for all of them, 0 for none.")
    for n_threads in (request.threads, request.threads_batch):
        if n_threads is None or 1 <= n_threads <= cpu.usable_logical:
            continue
        why = f" ({'; '.join(cpu.limits)})" if cpu.limits else ""
        raise UsageError(
            f"{n_threads} threads are asked for, and this process has {cpu.usable_logical} CPUs{why}. "
            "Threads beyond that only wait for each other.",
            f"Use --threads {cpu.usable_logical} or fewer, or leave it out.",
        )
    if request.n_ubatch is not None and not 1 <= request.n_ubatch <= _MAX_UBATCH:
        raise UsageError(f"A batch of {request.n_ubatch} tokens is not possible.", f"Use 1 to {_MAX_UBATCH}; 512 is usual.")
    if request.flash_attention is False and request.kv_type_v not in (None, "f16"):
        raise UsageError(
            f"Values kept as {request.kv_type_v} need the fused attention, which was to be off.",
            "Use --kv-type f16, or leave flash attention on.",
        )
    facts = artifact.facts
    if facts is not None and facts.kv_type is not None:
        _check_fixed(request, artifact, facts)
        return
    for name in (request.kv_type_k, request.kv_type_v):
        if name is not None and name not in KV_TYPES:
            raise UsageError(f"There is no KV type {name!r}.", f"Use one of: {', '.join(KV_TYPES)}.")
    header = artifact.header
    if header is None:
        return
    for name, width in ((request.kv_type_k, header.head_dim_k), (request.kv_type_v, header.head_dim_v)):
        if name is not None and width % KV_TYPES[name][0]:
            raise UsageError(
                f"{artifact.name} cannot keep its KV cache as {name}: its heads are {width} numbers wide, and {name} "
                f"packs {KV_TYPES[name][0]} at a time.",
                "Use --kv-type f16.",
            )


def _check_fixed(request: PlanRequest, artifact: Artifact, facts: ModelFacts) -> None:
    """Refuse what an ONNX or Core ML model has decided already."""
    for name in (request.kv_type_k, request.kv_type_v):
        if name not in (None, facts.kv_type):
            raise UsageError(
                f"{artifact.name} keeps its KV cache as {facts.kv_type}, and {name} is asked for.",
                "Leave out --kv-type, or use the model as GGUF.",
            )
    if facts.n_ctx_max is not None and (request.context or 0) > facts.n_ctx_max:
        raise UsageError(
            f"A context of {request.context:,} tokens is asked for, and {artifact.name} was built for {facts.n_ctx_max:,}.",
            f"Ask for {facts.n_ctx_max:,} or fewer, or convert it with --context {request.context}.",
        )
    if request.gpu_layers is not None and request.gpu_layers > 0:
        raise UsageError(
            f"{request.gpu_layers} layers on an accelerator are asked for; {artifact.format} models are computed in one place.",
            "Use --gpu-layers -1 or 0, or the model as GGUF.",
        )
    if request.flash_attention is False:
        raise UsageError("The fused attention is part of an ONNX or Core ML model and cannot be turned off.", "Leave it on.")
    if request.threads_batch not in (None, request.threads):
        raise UsageError("This engine has one number of threads for prefill and decode.", "Leave out that for prefill.")
    if facts.chunk is not None and request.n_ubatch not in (None, facts.chunk):
        raise UsageError(
            f"{artifact.name} was built for batches of {facts.chunk} tokens, and {request.n_ubatch} are asked for.",
            "Leave out the batch.",
        )


def _place(
    device: DeviceProfile,
    artifact: Artifact,
    layers: Sizes | None,
    request: PlanRequest,
    targets: list[Target],
    n_seq: int,
) -> tuple[Target, Room, Fit, list[str]]:
    """The first accelerator on which the model fits, the room there, how it fits, and why others were passed over."""
    passed_over: list[str] = []
    able = [target for target in targets if can_quantise_values(artifact, request, target)]
    for target in targets:
        if target not in able:
            passed_over.append(
                f"{target.accelerator} cannot keep values as {request.kv_type_v} for heads as wide as this model's"
            )
            continue
        room = room_for(device, target)
        fit = find_fit(artifact, layers, request, target, room, n_seq)
        if fit is not None:
            return target, room, fit, passed_over
        passed_over.append(f"{target.accelerator} has no room for it ({size_text(room.device_bytes)} free)")
    if not able:
        width = artifact.header.head_dim_v if artifact.header else 0
        raise UsageError(
            f"{targets[0].reason} cannot keep the values of {artifact.name} as {request.kv_type_v}: that needs fused "
            f"attention, for which llama.cpp has no kernel there when heads are {width} numbers wide.",
            "Use --kv-type f16.",
        )
    target = able[0]
    room = room_for(device, target)
    has_room_elsewhere = target.accelerator != "cpu" and not request.gpu_layers
    if request.require and has_room_elsewhere and find_fit(artifact, layers, request, _CPU, room_for(device, _CPU), n_seq):
        raise BackendUnavailableError(
            f"{target.reason} is required, and has no room for {artifact.name}, not even in part: "
            f"{size_text(room.device_bytes)} of its memory may be used.",
            f"Free memory on it, or leave out --require {request.require}.",
        )
    message, hint = describe_shortage(device, artifact, layers, request, able, n_seq)
    raise ModelTooLargeError(message, hint)


_CPU = Target("cpu", None, is_unified=False, reason="")


def _threads(cpu: Cpu, request: PlanRequest) -> tuple[Choice, Choice]:
    """Threads for decode and for prefill."""
    limits = "".join(f"; {limit}" for limit in cpu.limits)
    if request.threads is not None:
        asked = Choice("threads", str(request.threads), f"asked for; {cpu.usable_logical} CPUs may be used{limits}")
        if request.threads_batch not in (None, request.threads):
            return asked, Choice("threads, prefill", str(request.threads_batch), "asked for")
        return asked, Choice("threads, prefill", str(request.threads), "as for decode")
    fast, slow = cpu.usable_performance, cpu.usable_efficiency
    n_threads = max(1, fast or slow)
    kind = "performance" if cpu.n_efficiency and fast else "physical"
    cores = f"the one {kind} core" if n_threads == 1 else f"the {n_threads} {kind} cores"
    each = ", one thread each" if cpu.n_logical > cpu.n_physical and n_threads > 1 else ""
    reason = f"{cores} that may be used{each}{limits}"
    decode = Choice("threads", str(n_threads), reason)
    if request.threads_batch is not None:
        return decode, Choice("threads, prefill", str(request.threads_batch), "asked for")
    together = (fast + slow) * cpu.efficiency_speed  # all wait for the slowest
    if fast and slow and together > _WORTH_THE_SLOW_CORES * fast:
        reason = f"with the {slow} efficiency cores, {cpu.efficiency_speed:.0%} as fast: prefill is bound by arithmetic"
        return decode, Choice("threads, prefill", str(fast + slow), reason)
    reason = "as for decode"
    if fast and slow:
        reason = f"as for decode: the {slow} efficiency cores would hold the others up"
    return decode, Choice("threads, prefill", str(n_threads), reason)


def _accelerator_choice(
    target: Target, missing: list[Missing], passed_over: list[str], request: PlanRequest, why_faster: str
) -> Choice:
    notes = [target.reason]
    if why_faster:
        notes.append(why_faster)
    elif request.require or (request.gpu_layers == 0 and target.accelerator == "cpu"):
        notes.append("asked for")
    elif target.accelerator == "cpu":
        told = [item.reason.rstrip(".") for item in missing if item.is_worth_a_word]
        notes += told + passed_over or ["no CUDA or Metal device was found"]
    return Choice("accelerator", target.accelerator, "; ".join(notes))


def _layer_choice(layers: Sizes | None, target: Target, fit: Fit, request: PlanRequest) -> tuple[Choice, ...]:
    """How many layers go to the accelerator; nothing where there is none."""
    if target.free_bytes is None or not isinstance(layers, Layers):
        return ()
    n_all = layers.n_layer + 1
    n_device = fit.layout.gpu_layers
    asked = "asked for; " if request.gpu_layers is not None else ""
    if n_device >= n_all:
        return (Choice("layers offloaded", f"{n_device} of {n_all}", f"{asked}all fit, the output layer counted as one"),)
    reason = f"{asked}as many as fit into {size_text(fit.memory.device_available_bytes)}; the rest is computed on the CPU"
    if asked:
        reason = f"{asked}the rest is computed on the CPU"
    return (Choice("layers offloaded", f"{n_device} of {n_all}", reason),)


def _memory_choice(fit: Fit, room: Room, device: DeviceProfile) -> Choice:
    memory = fit.memory
    parts = (
        f"weights {size_text(memory.weights_bytes)}, KV cache {size_text(memory.kv_bytes)}, "
        f"buffers {size_text(memory.compute_bytes)}"
    )
    limit = f", within {device.memory.limit}" if device.memory.limit else ""
    own = f", {size_text(memory.device_bytes)} of it on the accelerator" if memory.device_bytes else ""
    free = f"{size_text(memory.available_bytes)} may be used{limit}, with {size_text(room.margin_bytes)} left free"
    return Choice("memory", size_text(memory.total_bytes), f"{parts}{own}; {free}")


def _flash_choice(fit: Fit, request: PlanRequest) -> Choice:
    if request.flash_attention is False:
        return Choice("flash attention", "off", "asked for")
    if fit.layout.flash_attention:
        return Choice("flash attention", "on", "needs no memory for the scores of every head, and quantised values need it")
    return Choice("flash attention", "off", "the accelerator has no kernel for heads as wide as this model's")


def _mmap_choice(use_mmap: bool) -> Choice:
    if use_mmap:
        return Choice("file mapping", "on", "loads at once, and what is read again comes from the page cache")
    return Choice("file mapping", "off", "the GPU keeps a copy in the same memory, so a mapped file would take it twice")


def _llamacpp_choices(
    layers: Sizes | None, fit: Fit, request: PlanRequest, use_mmap: bool, safety: Safety | None
) -> tuple[Choice, ...]:
    """What only llama.cpp has."""
    return (
        _flash_choice(fit, request),
        _mmap_choice(use_mmap),
        Choice("memory lock", "off", "locking needs a privilege on most systems, and makes loading read every page first"),
        *_repacking_choice(layers, fit, safety),
    )


def _repacking_choice(layers: Sizes | None, fit: Fit, safety: Safety | None) -> tuple[Choice, ...]:
    """Weight repacking, which matters for what the CPU computes."""
    if layers is not None and fit.layout.gpu_layers > layers.n_layer:
        return ()
    if safety is None:
        return (Choice("weight repacking", "on", "not checked on this machine"),)
    if safety.use_extra_buffers:
        return (Choice("weight repacking", "on", safety.note or "a trial run with it came through on this CPU"),)
    return (Choice("weight repacking", "off", safety.note),)
