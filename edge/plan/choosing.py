"""Chooses among a model's formats: `choose_plan` makes the plan of the best one that can run here.

Results of `edge tune` decide where it measured at least two of them on this device that lose nothing. Otherwise the order is:
the accelerator that computes fastest or takes the least energy, then the engine (llama.cpp takes the least memory; which one is
faster depends on the processor and the model), then the published model before its conversions, then the smaller file. A format
that does not fit, or cannot do what is asked for, is passed over; the receipt says why.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edge.errors import BackendUnavailableError, EdgeError, ModelTooLargeError, UsageError
from edge.names import ACCELERATORS, Accelerator
from edge.plan.checks import check_request
from edge.plan.make import make_plan, plan_at
from edge.plan.placement import Placement, find_targets, is_installed, place, rows_for
from edge.plan.receipt import Choice, Plan, PlanRequest
from edge.registry import ENGINES, EngineRow
from edge.units import size_text

if TYPE_CHECKING:
    from edge.device.profile import DeviceProfile
    from edge.formats.artifact import Artifact
    from edge.names import Format
    from edge.plan.receipt import Safety
    from edge.plan.tuning import Lookup

__all__ = ["choose_plan", "rank_formats"]

WhyFailed = Callable[[EngineRow, "Artifact", Accelerator], str]
"""Says what went wrong when an engine tried a model on an accelerator; "" where it works, or nobody tried."""

_BY_ACCELERATOR = {
    "cuda": "a CUDA device computes fastest",
    "ane": "the Neural Engine takes the least energy",
    "metal": "the GPU computes faster than the CPU",
}


@dataclass(frozen=True, slots=True)
class _Option:
    """One artifact and how it would run.

    Attributes:
        artifact: the model.
        placement: its engine and the accelerators to try.
        accelerator: the first of them on which the engine has not failed.
        tuned: what was measured.
        failed: why it does not run on the accelerators before, one note each.
        is_hopeless: it runs on none of them.
    """

    artifact: Artifact
    placement: Placement
    accelerator: Accelerator
    tuned: Lookup | None
    failed: tuple[str, ...] = ()
    is_hopeless: bool = False

    @property
    def engine(self) -> str:
        """Name of its engine."""
        return self.placement.row.name

    @property
    def order(self) -> tuple[object, ...]:
        """Sort key: the smallest is the best."""
        facts, repacked = self.artifact.facts, self.placement.row.repacked
        return (
            self.is_hopeless,
            ACCELERATORS.index(self.accelerator),
            list(ENGINES).index(self.engine),
            bool(self.artifact.made_from),  # a conversion loses a little against the model that its makers publish
            facts.made_for == "ane" and self.accelerator != "ane",  # palettes, for the Neural Engine, lose more than blocks
            bool(repacked) and self.accelerator == "cpu" and facts.quantisation not in repacked,
            self.artifact.size_bytes,
        )

    @property
    def turn_s(self) -> float | None:
        """Measured time of a turn of a chat, in seconds; None where it was not measured, or loses quality."""
        tuning = self.tuned.tuning if self.tuned is not None else None
        return tuning.turn_s if tuning is not None and tuning.is_lossless else None


def rank_formats(device: DeviceProfile, request: PlanRequest, *, must_run: bool = False) -> tuple[Format, ...]:
    """Return the formats that can run here, the best first: for a model that is not on the device yet.

    Args:
        device: from `edge.device.probe`.
        request: the user's.
        must_run: fail early, before anything is downloaded, when no engine could do what is asked for with any model.

    Returns:
        Where nothing can run, the formats of the engine that was asked for, or ("gguf",), in which most models are published:
        the plan then says what is missing.

    Raises:
        BackendUnavailableError, UsageError: only if must_run; of the first engine that could use the accelerator, whose needs
            say more than that another engine never can.
    """
    rows = rows_for(request)
    able = [row for row in rows if request.require in (None, *row.accelerators, *row.on_request)]
    found: list[tuple[int, int, Format]] = []
    errors: list[EdgeError] = []
    for place_in_order, row in enumerate(rows):
        try:
            targets, _ = find_targets(device, row, request)
        except (BackendUnavailableError, UsageError) as error:
            if row in (able or rows):
                errors.append(error)
            continue
        must_run = False
        if is_installed(device, row):
            best = min(ACCELERATORS.index(target.accelerator) for target in targets)
            found += [(best, place_in_order, name) for name in row.formats]
    if must_run and errors:
        raise errors[0]
    asked = tuple(name for row in rows if row.name == request.backend for name in row.formats)
    return tuple(dict.fromkeys(name for _, _, name in sorted(found))) or asked or ("gguf",)


def choose_plan(
    device: DeviceProfile,
    candidates: Sequence[tuple[Artifact, Lookup | None]],
    request: PlanRequest,
    *,
    safety: Safety | None = None,
    why_failed: WhyFailed = lambda row, artifact, accelerator: "",
) -> Plan:
    """Return the plan of the best artifact that can run here.

    Its fallbacks end where another artifact would do better: when this one fails, plan again.

    Args:
        device: from `edge.device.probe`.
        candidates: one model in several formats or quantisations, at least one, each with what was measured of it here.
        request: the user's.
        safety: as for `make_plan`.
        why_failed: asks the engines that try models when they load them.

    Raises:
        BackendUnavailableError, UsageError, ModelTooLargeError: as `make_plan`, of the artifact that came furthest.
    """
    if len(candidates) == 1:
        artifact, tuned = candidates[0]
        return make_plan(device, artifact, request, safety=safety, tuned=tuned)
    check_request(request, device.cpu)
    options, failures = _options(device, candidates, request, why_failed)
    if not options:
        raise failures[0]

    def plan_of(option: _Option) -> Plan:
        return plan_at(option.placement, device, option.artifact, request, safety=safety, tuned=option.tuned)

    ordered = sorted(options, key=lambda option: option.order)
    measured = sorted((option for option in options if option.turn_s), key=lambda option: option.turn_s or 0)
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
        failed = [f"{other.artifact.kind} {note}" for other in options if other is not option for note in other.failed]
        line = Choice("format", option.artifact.kind, "; ".join([*failed, *passed_over, why]))
        plan = replace(plan, choices=(line, *plan.choices))
        if len(measured) > 1 or option.is_hopeless:
            return plan
        return replace(plan, fallbacks=_own_fallbacks(plan, option, ordered[ordered.index(option) + 1 :], plan_of))
    raise failures[-1]


def _own_fallbacks(
    plan: Plan, option: _Option, others: Sequence[_Option], plan_of: Callable[[_Option], Plan]
) -> tuple[Accelerator, ...]:
    """Return the fallbacks of a plan before the first on which another option would be better, and can do what is asked for."""
    for n, accelerator in enumerate(plan.fallbacks):
        lesser = replace(option, accelerator=accelerator)
        for other in others:
            if other.order < lesser.order:
                with suppress(ModelTooLargeError, UsageError):
                    plan_of(other)
                    return plan.fallbacks[:n]
    return plan.fallbacks


def _options(
    device: DeviceProfile,
    candidates: Sequence[tuple[Artifact, Lookup | None]],
    request: PlanRequest,
    why_failed: WhyFailed,
) -> tuple[list[_Option], list[EdgeError]]:
    """Return the artifacts that an engine here can run, and why the others cannot."""
    options: list[_Option] = []
    failures: list[EdgeError] = []
    for artifact, tuned in candidates:
        try:
            placement = place(device, artifact, request)
        except BackendUnavailableError as error:
            failures.append(error)
            continue
        names = [target.accelerator for target in placement.targets]
        row = placement.row
        notes = {name: why_failed(row, artifact, name) if row.why_failed else "" for name in names}
        best = next((name for name in names if not notes[name]), None)
        if tuned is not None and tuned.tuning is not None and tuned.tuning.accelerator not in names:
            tuned = None  # what the CPU did says nothing of the accelerator that is asked for
        failed = tuple(f"does not work on {name}: {notes[name]}" for name in names[: names.index(best) if best else None])
        options.append(_Option(artifact, placement, best or names[0], tuned, failed, is_hopeless=best is None))
    return options, failures


def _reason(option: _Option, ordered: Sequence[_Option], measured: Sequence[_Option]) -> str:
    """Say why this one."""
    if len(measured) > 1 and measured[0] is option:
        times = ", ".join(f"{other.artifact.kind} {other.turn_s:.2f}" for other in measured)
        return f"edge tune measured on this device, in seconds for a turn of a chat: {times}"
    others = [other for other in ordered if other is not option]
    if not others:
        return "the only one that can be run here"
    listed = ", ".join(dict.fromkeys(other.artifact.kind for other in others))
    if all(other.accelerator != option.accelerator for other in others) and option.accelerator in _BY_ACCELERATOR:
        why = _BY_ACCELERATOR[option.accelerator]
    elif all(other.engine != option.engine for other in others):
        why = "the usual order, as nothing was measured here"
    elif not option.artifact.made_from and all(other.artifact.made_from for other in others if other.engine == option.engine):
        why = "as it was published"
    else:
        why = size_text(option.artifact.size_bytes)
    return f"{why}; also here: {listed}. edge tune measures them"
