"""From a device, a model and a request to a plan, before anything is loaded: `make_plan`.

A model that does not fit is refused with numbers and the nearest plan that does, not by the kernel. A request is never changed
in silence: it is met, or refused. On one accelerator, more free memory never gives a smaller context.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edge.errors import BackendUnavailableError, ModelTooLargeError, UsageError
from edge.plan.apply_tuning import compared_text, engine_text, explain_tuning, measured_target, speeds_text, tuned_request
from edge.plan.checks import check_model, check_request, engines_with
from edge.plan.fitting import Fit, Fitting
from edge.plan.memory import memory_model
from edge.plan.placement import Placement, Target, place, place_on
from edge.plan.receipt import Choice, Plan, PlanRequest
from edge.plan.shortage import shortage
from edge.plan.tuning import Lookup
from edge.registry import ENGINES
from edge.units import size_text

if TYPE_CHECKING:
    from edge.device.profile import Cpu, DeviceProfile
    from edge.formats.artifact import Artifact
    from edge.names import Accelerator
    from edge.plan.memory import Layout
    from edge.plan.receipt import Safety
    from edge.plan.tuning import Tuning
    from edge.registry import EngineRow

__all__ = ["make_plan", "plan_at"]

# Efficiency cores join in for prefill where the team gains this much although everybody waits for the slowest.
_WORTH_THE_SLOW_CORES = 1.25
_CPU = Target("cpu", None, is_unified=False, reason="")


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
        request: the user's; None leaves everything to the plan.
        safety: how the engine may be loaded, from `edge.plan.placement.safety_here`; None counts as safe.
        tuned: measured settings, from `edge.plan.tuning.look_up`; the request wins over them.

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
    check_request(request, device.cpu)
    return plan_at(place(device, artifact, request), device, artifact, request, safety=safety, tuned=tuned)


def plan_at(
    placement: Placement,
    device: DeviceProfile,
    artifact: Artifact,
    request: PlanRequest,
    *,
    safety: Safety | None = None,
    tuned: Lookup | None = None,
) -> Plan:
    """As `make_plan`, of a request that was checked, for a model whose usual engine and its accelerators are found."""
    placement = _placement_with_kv_type(placement, device, artifact, request)
    tuning = tuned.tuning if tuned is not None else None
    faster = None
    if tuning is not None and request.backend is None and tuning.backend != placement.row.name:
        faster = place_on(device, artifact, request, tuning.backend, tuning.accelerator)
    if faster is None or tuning is None:
        return _plan_on(placement, device, artifact, request, safety, tuned)
    faster = replace(faster, reason=engine_text(tuning))
    try:
        plan = _plan_on(faster, device, artifact, request, safety, tuned)
    except (UsageError, BackendUnavailableError, ModelTooLargeError):  # it cannot do what is asked for
        return _plan_on(placement, device, artifact, request, safety, tuned)
    measured = (tuning.accelerator, request.kv_type_k or tuning.kv_type_k, request.kv_type_v or tuning.kv_type_v)
    if (plan.accelerator, plan.kv_type_k, plan.kv_type_v) != measured:
        return _plan_on(placement, device, artifact, request, safety, tuned)
    try:
        usual = _plan_on(placement, device, artifact, request, safety, tuned)
    except (UsageError, BackendUnavailableError, ModelTooLargeError):
        return plan
    return plan if plan.n_ctx >= usual.n_ctx else usual


def _placement_with_kv_type(placement: Placement, device: DeviceProfile, artifact: Artifact, request: PlanRequest) -> Placement:
    """Return the placement on another engine where only that has the types of keys and values that are asked for."""
    asked = {name for name in (request.kv_type_k, request.kv_type_v) if name is not None}
    if request.backend is not None or not placement.row.kv_types or asked <= {*placement.row.kv_types}:
        return placement
    able = [engines_with(name, artifact, device.cpu) for name in asked]
    for engine in ENGINES:
        if all(engine in names for names in able):
            other = place_on(device, artifact, request, engine, "cpu")
            if other is not None:
                return replace(other, reason=f"the engine here that stores keys and values as {' and '.join(sorted(asked))}")
    return placement


def _plan_on(
    placement: Placement,
    device: DeviceProfile,
    artifact: Artifact,
    request: PlanRequest,
    safety: Safety | None,
    tuned: Lookup | None,
) -> Plan:
    row = placement.row
    check_model(request, artifact, row, device.cpu)
    memory = memory_model(artifact, n_spare=row.n_spare, weights_factor=row.weights_factor)
    fitting = Fitting(device, artifact, memory, request, request.n_seq or row.n_seq, row.kv_types)
    chosen = _choose(fitting, placement, (tuned or Lookup()).tuning)
    fit, layout = chosen.fit, chosen.fit.layout
    threads, threads_batch = _threads(device.cpu, chosen.request, row)
    use_mmap = not (fit.target.accelerator == "cuda" and fit.target.is_unified)
    return Plan(
        backend=row.name,
        accelerator=fit.target.accelerator,
        artifact=artifact,
        n_ctx=layout.n_ctx,
        n_seq=layout.n_seq,
        n_threads=int(threads.value),
        n_threads_batch=int(threads_batch.value),
        n_ubatch=layout.n_ubatch,
        gpu_layers=layout.gpu_layers,
        kv_type_k=layout.kv_type_k,
        kv_type_v=layout.kv_type_v,
        flash_attention=layout.flash_attention,
        use_mmap=use_mmap,
        use_extra_buffers=safety.use_extra_buffers if safety is not None else True,
        memory=fit.memory,
        choices=_receipt(fitting, placement, chosen, (threads, threads_batch), use_mmap, safety, tuned),
        pass_costs=_pass_costs(tuned, row, fit.target),
        # An engine that tries a model before it uses an accelerator may take another one, unless one is required.
        fallbacks=chosen.others if row.why_failed and request.require is None else (),
    )


def _pass_costs(tuned: Lookup | None, row: EngineRow, target: Target) -> tuple[tuple[int, float], ...]:
    """Return what passes over several tokens were measured to cost on this engine; empty if they were not."""
    tuning = tuned.tuning if tuned is not None else None
    speed = tuning.engine(row.name, target.accelerator) if tuning is not None else None
    return tuple((size, round(cost, 3)) for size, cost in speed.pass_costs.items()) if speed is not None else ()


@dataclass(frozen=True, slots=True)
class _Chosen:
    """The accelerator and settings of a plan, and what was measured of them.

    Attributes:
        fit: the settings, with measured ones.
        usual: the layout without measured settings.
        request: the user's, with measured settings where it leaves a choice.
        tuning: what was measured; None where it is not used.
        why_faster: why the measured accelerator is used; "" where the order is the usual one.
        passed_over: accelerators before this one, and why they are not used.
        others: accelerators that could be tried after this one.
    """

    fit: Fit
    usual: Layout
    request: PlanRequest
    tuning: Tuning | None
    why_faster: str
    passed_over: list[str]
    others: tuple[Accelerator, ...]


def _choose(fitting: Fitting, placement: Placement, tuning: Tuning | None) -> _Chosen:
    """Choose accelerator and settings; what was measured is used unless it costs context."""
    row, request, why_faster = placement.row, fitting.request, ""
    fit, passed_over = _first_fit(fitting, placement.targets)
    n_before = placement.targets.index(fit.target)
    others = placement.targets[n_before + 1 :]
    measured = measured_target(tuning, row, placement.targets, request)
    if measured is not None and tuning is not None and fitting.can_quantise_values(measured):
        faster = fitting.find(measured)
        if faster is not None and faster.layout.n_ctx >= fit.layout.n_ctx:
            fit, passed_over, why_faster = faster, [], speeds_text(tuning)
            others = tuple(target for target in placement.targets if target is not measured)
    usual = fit.layout
    changed = tuned_request(tuning, row, fit.target, request, fitting.device.cpu)
    faster = replace(fitting, request=changed).find(fit.target) if changed is not None else None
    if changed is None or faster is None or faster.layout.n_ctx < usual.n_ctx:
        changed, tuning = request, None
    else:
        fit = faster
    return _Chosen(fit, usual, changed, tuning, why_faster, passed_over, tuple(target.accelerator for target in others))


def _first_fit(fitting: Fitting, targets: Sequence[Target]) -> tuple[Fit, list[str]]:
    """Return how the model fits on the first accelerator that has room for it, and why others were passed over."""
    request, passed_over = fitting.request, []
    able = [target for target in targets if fitting.can_quantise_values(target)]
    for target in targets:
        if target not in able:
            passed_over.append(
                f"{target.accelerator} cannot store values as {request.kv_type_v} for heads as wide as this model's"
            )
            continue
        fit = fitting.find(target)
        if fit is not None:
            return fit, passed_over
        passed_over.append(f"{target.accelerator} has no room for it ({size_text(fitting.room(target).device_bytes)} free)")
    if not able:
        width = fitting.artifact.facts.head_dim_v
        raise UsageError(
            f"{targets[0].reason} cannot store the values of {fitting.artifact.name} as {request.kv_type_v}: that needs flash "
            f"attention, for which llama.cpp has no kernel there when heads are {width} numbers wide.",
            "Use --kv-type f16.",
        )
    if request.require not in (None, "cpu") and not request.gpu_layers and fitting.find(_CPU):
        raise BackendUnavailableError(
            f"{able[0].reason} is required, and has no room for {fitting.artifact.name}, not even in part: "
            f"{size_text(fitting.room(able[0]).device_bytes)} of its memory may be used.",
            f"Free memory on it, or leave out --require {request.require}.",
        )
    raise shortage(fitting, able)


def _threads(cpu: Cpu, request: PlanRequest, row: EngineRow) -> tuple[Choice, Choice]:
    """Choose the threads for decode and for prefill."""
    limits = "".join(f"; {limit}" for limit in cpu.limits)
    fast, slow = cpu.usable_performance, cpu.usable_efficiency
    if request.threads is not None:
        decode = Choice("threads", str(request.threads), f"asked for; {cpu.usable_logical} CPUs may be used{limits}")
    else:
        n_threads = max(1, fast or slow)
        kind = "performance" if cpu.n_efficiency and fast else "physical"
        cores = f"the one {kind} core" if n_threads == 1 else f"the {n_threads} {kind} cores"
        each = ", one thread each" if cpu.n_logical > cpu.n_physical and n_threads > 1 else ""
        decode = Choice("threads", str(n_threads), f"{cores} that may be used{each}{limits}")

    def prefill(value: object, reason: str) -> tuple[Choice, Choice]:
        return decode, Choice("threads, prefill", str(value), reason)

    if "threads_batch" not in row.options:
        return prefill(decode.value, "as for decode: this engine has one number for both")
    if request.threads_batch not in (None, request.threads):
        return prefill(request.threads_batch, "asked for")
    if request.threads is not None or not (fast and slow):
        return prefill(decode.value, "as for decode")
    if (fast + slow) * cpu.efficiency_speed > _WORTH_THE_SLOW_CORES * fast:  # all wait for the slowest
        speed = f"{cpu.efficiency_speed:.0%} as fast: prefill is bound by arithmetic"
        return prefill(fast + slow, f"with the {slow} efficiency cores, {speed}")
    return prefill(decode.value, f"as for decode: the {slow} efficiency cores would hold the others up")


def _receipt(
    fitting: Fitting,
    placement: Placement,
    chosen: _Chosen,
    threads: tuple[Choice, Choice],
    use_mmap: bool,
    safety: Safety | None,
    tuned: Lookup | None,
) -> tuple[Choice, ...]:
    """Return every choice with its reason."""
    fit, row, request = chosen.fit, placement.row, fitting.request
    lines = (
        Choice("backend", row.name, placement.reason + _compared(chosen, row, request, tuned)),
        _accelerator_line(placement, chosen, request),
        *_layers_line(fitting, fit, row),
        fit.context_choice,
        fit.kv_choice,
        _memory_line(fit, fitting.device),
        *threads,
        fit.batch_choice,
        *_engine_lines(fitting, fit, row, use_mmap, safety),
        _sequences_line(fitting, fit.layout),
    )
    if chosen.tuning is not None:
        usual_threads = _threads(fitting.device.cpu, request, row)
        return explain_tuning(lines, chosen.tuning, request, chosen.usual, usual_threads)
    if tuned is not None and tuned.ignored:
        return (*lines, Choice("tuning", "not used", tuned.ignored))
    return lines


def _compared(chosen: _Chosen, row: EngineRow, request: PlanRequest, tuned: Lookup | None) -> str:
    """Say what the usual engine was compared with, where it was measured to be the fastest."""
    tuning = tuned.tuning if tuned is not None else None
    if tuning is None or request.backend is not None or tuning.reference != f"{row.name} on {chosen.fit.target.accelerator}":
        return ""
    return compared_text(tuning) if tuning.backend == row.name else ""


def _accelerator_line(placement: Placement, chosen: _Chosen, request: PlanRequest) -> Choice:
    target, notes = chosen.fit.target, [chosen.fit.target.reason]
    if chosen.why_faster:
        notes.append(chosen.why_faster)
    elif request.require or (request.gpu_layers == 0 and target.accelerator == "cpu"):
        notes.append("asked for")
    elif target.accelerator == "cpu":
        notable = [item.reason.rstrip(".") for item in placement.missing if item.is_notable]
        notes += [*notable, *chosen.passed_over] or ["no CUDA or Metal device was found"]
    return Choice("accelerator", target.accelerator, "; ".join(notes))


def _layers_line(fitting: Fitting, fit: Fit, row: EngineRow) -> tuple[Choice, ...]:
    """Say how many layers go to the accelerator, if there is a choice."""
    if fit.target.free_bytes is None or "gpu_layers" not in row.options:
        return ()
    n_all, n_device = fitting.memory.n_layer + 1, fit.layout.gpu_layers
    asked = "asked for; " if fitting.request.gpu_layers is not None else ""
    if n_device >= n_all:
        reason = f"{asked}all fit, the output layer counted as one"
    else:
        most = asked or f"as many as fit into {size_text(fit.memory.device_available_bytes)}; "
        reason = f"{most}the rest is computed on the CPU"
    return (Choice("layers offloaded", f"{n_device} of {n_all}", reason),)


def _memory_line(fit: Fit, device: DeviceProfile) -> Choice:
    memory = fit.memory
    parts = (
        f"weights {size_text(memory.weights_bytes)}, KV cache {size_text(memory.kv_bytes)}, "
        f"buffers {size_text(memory.compute_bytes)}"
    )
    limit = f", within {device.memory.limit}" if device.memory.limit else ""
    own = f", {size_text(memory.device_bytes)} of it on the accelerator" if memory.device_bytes else ""
    free = f"{size_text(memory.available_bytes)} may be used{limit}, with {size_text(fit.room.margin_bytes)} left free"
    return Choice("memory", size_text(memory.total_bytes), f"{parts}{own}; {free}")


def _engine_lines(fitting: Fitting, fit: Fit, row: EngineRow, use_mmap: bool, safety: Safety | None) -> list[Choice]:
    """Return the lines about settings that only some engines have."""
    lines = []
    if "flash_attention" in row.options:
        if fit.layout.flash_attention:
            value, reason = "on", "needs no memory for the scores of every head, and quantised values need it"
        elif fitting.request.flash_attention is False:
            value, reason = "off", "asked for"
        else:
            value, reason = "off", "the accelerator has no kernel for heads as wide as this model's"
        lines.append(Choice("flash attention", value, reason))
    if "use_mmap" in row.options:
        if use_mmap:
            value, reason = "on", "loads at once, and pages that are read again come from the page cache"
        else:
            value, reason = "off", "the GPU keeps a copy in the same memory, so a mapped file would take it twice"
        lines.append(Choice("file mapping", value, reason))
    if "use_extra_buffers" in row.options and fit.layout.gpu_layers <= fitting.memory.n_layer:  # only the CPU repacks
        if safety is None:
            value, reason = "on", "not checked on this machine"
        elif safety.use_extra_buffers:
            value, reason = "on", safety.note or "a trial run with it succeeded on this CPU"
        else:
            value, reason = "off", safety.note
        lines.append(Choice("weight repacking", value, reason))
    return lines


def _sequences_line(fitting: Fitting, layout: Layout) -> Choice:
    asked = fitting.request.n_seq is not None
    reason = "asked for" if asked else "conversations that stay in the KV cache side by side"
    memory = fitting.memory
    more_bytes = memory.footprint(layout).total - memory.footprint(replace(layout, n_seq=1)).total
    if more_bytes:
        reason += f"; {size_text(more_bytes)} more memory than one"
    return Choice("sequences", str(layout.n_seq), reason)
