"""Which of a model's formats to run: `choose_plan` makes the plan of the best one that can be run here.

What `edge tune` measured decides where it measured at least two of them on this device. Otherwise the order is: the accelerator
that computes fastest or takes the least energy, then the engine (llama.cpp takes the least memory and reads a Q4_0 fastest, and
which one writes faster depends on the model: docs/bench.md), then what was published before what `edge convert` made of it,
then the smaller file. One that does not fit, or cannot do what is asked for, is passed over. The reason goes into the receipt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edge.errors import BackendUnavailableError, EdgeError, ModelTooLargeError, UsageError
from edge.names import ACCELERATORS, Accelerator
from edge.plan.make import make_plan
from edge.plan.placement import choose_engine, find_targets
from edge.plan.receipt import Choice, Plan, PlanRequest, size_text

if TYPE_CHECKING:
    from edge.backends.llamacpp.canary import Safety
    from edge.device.profile import DeviceProfile
    from edge.formats.artifact import Artifact
    from edge.names import Format
    from edge.plan.tuning import Lookup

__all__ = ["choose_plan", "rank_formats"]

_ENGINES = ("llamacpp", "onnx", "coreml")
_REPACKED = ("Q4_0", "IQ4_NL", "Q4_K_M", "Q4_K_S", "Q8_0")  # llama.cpp repacks these for a CPU, which about doubles prefill
_BY_ACCELERATOR = {
    "cuda": "a CUDA device computes fastest",
    "ane": "the Neural Engine takes the least energy",
    "metal": "the GPU computes faster than the CPU",
}


@dataclass(frozen=True, slots=True)
class _Option:
    """One artifact and how it would be run.

    Attributes:
        artifact: the model.
        engine, accelerator: where it would run.
        tuned: what was measured.
        failed: why it does not run on what the engine would rather use, one note each.
        is_hopeless: it runs on nothing here.
    """

    artifact: Artifact
    engine: str
    accelerator: Accelerator
    tuned: Lookup | None
    failed: tuple[str, ...] = ()
    is_hopeless: bool = False

    @property
    def order(self) -> tuple[object, ...]:
        """The smallest is the best."""
        facts = self.artifact.facts
        is_slow = self.engine == "llamacpp" and self.accelerator == "cpu" and facts is not None
        # Palettes, which the Neural Engine wants, lose more than blocks.
        return (
            self.is_hopeless,
            ACCELERATORS.index(self.accelerator),
            _ENGINES.index(self.engine) if self.engine in _ENGINES else len(_ENGINES),
            bool(self.artifact.made_from),  # beside what its makers publish a conversion is the copy, which loses a little
            self.engine == "coreml" and facts is not None and facts.quantisation == "ane" and self.accelerator != "ane",
            is_slow and facts is not None and facts.quantisation not in _REPACKED,
            self.artifact.size_bytes,
        )

    @property
    def speed(self) -> float | None:
        """Measured tokens a second while writing; None where it was not measured."""
        tuning = self.tuned.tuning if self.tuned is not None else None
        return tuning.decode_tokens_per_s if tuning is not None else None


def rank_formats(device: DeviceProfile, request: PlanRequest) -> tuple[Format, ...]:
    """The formats that can be run here, best first: for a model that is not on the device yet.

    Args:
        device: from `edge.device.probe`.
        request: what was asked for.

    Returns:
        Where nothing can be run, what the engine that was asked for reads, or ("gguf",), which is what most models are
        published in: what is missing is said when the plan is made.
    """
    from edge.plan.placement import ENGINES

    found: list[tuple[int, int, Format]] = []
    for place, row in enumerate(ENGINES):
        if row.name != request.backend and not (request.backend is None and row.is_automatic):
            continue
        engine = device.engine(row.name)
        if row.needs_package and (engine is None or not engine.is_installed):
            continue
        try:
            targets, _ = find_targets(device, row, request)
        except EdgeError:
            continue
        best = min(ACCELERATORS.index(target.accelerator) for target in targets)
        found += [(best, place, name) for name in row.formats]
    asked = tuple(name for row in ENGINES if row.name == request.backend for name in row.formats)
    return tuple(dict.fromkeys(name for _, _, name in sorted(found))) or asked or ("gguf",)


def choose_plan(
    device: DeviceProfile,
    candidates: Sequence[tuple[Artifact, Lookup | None]],
    request: PlanRequest,
    *,
    safety: Safety | None = None,
    why_failed: Callable[[Artifact, Accelerator], str] = lambda artifact, accelerator: "",
) -> Plan:
    """The plan of the best artifact that can be run here.

    Its fallbacks end where another artifact would do better: when this one fails, plan again.

    Args:
        device: from `edge.device.probe`.
        candidates: one model in several formats or quantisations, at least one, each with what was measured of it here.
        request: what was asked for.
        safety: as for `make_plan`.
        why_failed: what went wrong when an engine tried a model on an accelerator before; "" where it works, or nobody tried.

    Raises:
        BackendUnavailableError, UsageError, ModelTooLargeError: as `make_plan`, of the artifact that came furthest.
    """
    if len(candidates) == 1:
        artifact, tuned = candidates[0]
        return make_plan(device, artifact, request, safety=safety, tuned=tuned)
    options, failures = _options(device, candidates, request, why_failed)
    if not options:
        raise failures[0]

    def plan_of(option: _Option) -> Plan:
        return make_plan(device, option.artifact, request, safety=safety, tuned=option.tuned)

    ordered = sorted(options, key=lambda option: option.order)
    measured = sorted((option for option in options if option.speed), key=lambda option: -(option.speed or 0))
    if len(measured) > 1:
        ordered = [measured[0], *(option for option in ordered if option is not measured[0])]
    passed_over: list[str] = []
    for option in ordered:
        try:
            plan = plan_of(option)
        except ModelTooLargeError as error:
            failures.append(error)
            passed_over.append(f"{option.artifact.kind} does not fit into memory")
            continue
        except UsageError as error:  # a package built for a shorter context, keys and values of another type
            failures.append(error)
            passed_over.append(f"{option.artifact.kind} cannot do what is asked for ({error.message.rstrip('.')})")
            continue
        why = _reason(option, ordered, measured if not passed_over else [])
        if request.backend is not None and len(ordered) == 1:
            why = f"what {request.backend} reads, which is asked for"
        told = [f"{other.artifact.kind} {note}" for other in options if other is not option for note in other.failed]
        plan = replace(
            plan, choices=(Choice("format", option.artifact.kind, "; ".join([*told, *passed_over, why])), *plan.choices)
        )
        if len(measured) > 1 or option.is_hopeless:
            return plan
        return replace(plan, fallbacks=_own_fallbacks(plan, option, ordered[ordered.index(option) + 1 :], plan_of))
    raise failures[-1]


def _own_fallbacks(
    plan: Plan, option: _Option, others: Sequence[_Option], plan_of: Callable[[_Option], Plan]
) -> tuple[Accelerator, ...]:
    """The fallbacks of a plan up to the first on which another option would be better, and can do what is asked for."""
    kept: list[Accelerator] = []
    for accelerator in plan.fallbacks:
        lesser = replace(option, accelerator=accelerator)
        for other in others:
            if other.order < lesser.order:
                with suppress(ModelTooLargeError, UsageError):
                    plan_of(other)
                    return tuple(kept)
        kept.append(accelerator)
    return tuple(kept)


def _options(
    device: DeviceProfile,
    candidates: Sequence[tuple[Artifact, Lookup | None]],
    request: PlanRequest,
    why_failed: Callable[[Artifact, Accelerator], str],
) -> tuple[list[_Option], list[EdgeError]]:
    """Those that an engine here can run, and why the others cannot be."""
    options: list[_Option] = []
    failures: list[EdgeError] = []
    for artifact, tuned in candidates:
        try:
            row, _ = choose_engine(device, artifact, request)
            targets, _ = find_targets(device, row, request)
        except BackendUnavailableError as error:
            failures.append(error)
            continue
        names = [target.accelerator for target in targets]
        notes = {name: why_failed(artifact, name) if row.tries else "" for name in names}
        best = next((name for name in names if not notes[name]), None)
        if tuned is not None and tuned.tuning is not None and tuned.tuning.accelerator not in names:
            tuned = None  # what the CPU did says nothing of the accelerator that is asked for
        failed = tuple(f"does not work on {name}: {notes[name]}" for name in names[: names.index(best) if best else None])
        options.append(_Option(artifact, row.name, best or names[0], tuned, failed, is_hopeless=best is None))
    return options, failures


def _reason(option: _Option, ordered: Sequence[_Option], measured: Sequence[_Option]) -> str:
    """Why this one."""
    others = [other for other in ordered if other is not option]
    if len(measured) > 1 and measured[0] is option:
        listed = ", ".join(f"{other.artifact.kind} {other.speed:,.1f}" for other in measured)
        return f"edge tune measured on this device, in tokens/s: {listed}"
    if not others:
        return "the only one that can be run here"
    listed = ", ".join(dict.fromkeys(other.artifact.kind for other in others))
    if all(other.accelerator != option.accelerator for other in others) and option.accelerator in _BY_ACCELERATOR:
        return f"{_BY_ACCELERATOR[option.accelerator]}; also here: {listed}. edge tune measures them"
    if all(other.engine != option.engine for other in others):
        return f"the usual order, as nothing was measured here; also here: {listed}. edge tune measures them"
    if not option.artifact.made_from and all(other.artifact.made_from for other in others if other.engine == option.engine):
        return f"as it was published; also here: {listed}. edge tune measures them"
    return f"{size_text(option.artifact.size_bytes)}; also here: {listed}. edge tune measures them"
