"""The candidates of a measurement: models times engines times settings, without impossible combinations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edge.bench.run import Candidate
from edge.errors import BackendUnavailableError, UsageError
from edge.plan.make import make_plan
from edge.plan.placement import can_run, rows_for, safety_here
from edge.plan.receipt import PlanRequest
from edge.plan.tuning import look_up
from edge.registry import ENGINES

if TYPE_CHECKING:
    from edge.device.profile import DeviceProfile
    from edge.errors import EdgeError
    from edge.formats.artifact import Artifact
    from edge.names import Accelerator
    from edge.plan.receipt import Plan, Safety
    from edge.plan.tuning import Lookup
    from edge.registry import EngineRow

__all__ = ["Grid", "engines_for", "find_candidates"]

_MIN_CONTEXT = 1024  # a smaller one would make batches smaller than in normal use


@dataclass(frozen=True)
class Grid:
    """The settings to combine with every model. Empty leaves a choice to the plan.

    Attributes:
        backends: names; empty is every installed engine that reads the model.
        accelerators, threads, n_ubatch, kv_types, flash_attention: as in a PlanRequest.
        is_tuned: use the results of `edge tune`, as when a model is loaded.
    """

    backends: tuple[str, ...] = ()
    accelerators: tuple[Accelerator, ...] = ()
    threads: tuple[int, ...] = ()
    n_ubatch: tuple[int, ...] = ()
    kv_types: tuple[str, ...] = ()
    flash_attention: tuple[bool, ...] = ()
    is_tuned: bool = True


def engines_for(device: DeviceProfile, artifact: Artifact) -> list[EngineRow]:
    """Return the installed engines that can run a model."""
    return [row for row in rows_for(PlanRequest()) if can_run(device, row, artifact)]


def find_candidates(
    device: DeviceProfile,
    artifacts: Sequence[Artifact],
    grid: Grid,
    *,
    n_tokens: int,
    cache_dir: Path,
    on_left_out: Callable[[Artifact, str], None] = lambda artifact, why: None,
) -> list[Candidate]:
    """Return a candidate for each combination that is possible here.

    Args:
        device: from `edge.device.probe`.
        artifacts: the models.
        grid: the settings.
        n_tokens: length of prompt and reply together.
        cache_dir: has the canary's verdict and the tunings.
        on_left_out: called with a format that cannot be measured while another one of the same model can, and the reason.

    Raises:
        BackendUnavailableError: a model has no engine here, or a named engine can run none of the models.
        UsageError, ModelTooLargeError: as `make_plan`.
    """
    engines = {
        artifact.path: grid.backends or tuple(row.name for row in engines_for(device, artifact)) for artifact in artifacts
    }
    used = {name for names in engines.values() for name in names}
    safety = safety_here(device, [row for row in ENGINES.values() if row.name in used], cache_dir)
    found: list[Candidate] = []
    problems: dict[str, EdgeError] = {}
    unable: list[tuple[Artifact, EdgeError]] = []
    for artifact in artifacts:
        tuned = look_up(device, artifact, cache_dir=cache_dir) if grid.is_tuned else None
        plans: list[Plan] = []
        reason: EdgeError | None = None
        for backend in engines[artifact.path] or (None,):
            try:
                plans += _plans(device, artifact, backend, grid, n_tokens, safety, tuned)
            except (BackendUnavailableError, UsageError) as error:
                # That an engine cannot do this says more than that it reads other models.
                if reason is None or isinstance(error, UsageError):
                    reason = error
                if backend is not None and (backend not in problems or isinstance(error, UsageError)):
                    problems[backend] = error
        if reason is not None and (isinstance(reason, UsageError) or not plans):
            unable.append((artifact, reason))
        else:
            found += [Candidate("", plan) for plan in plans]
    for artifact, why in unable:
        if all(candidate.plan.artifact.source != artifact.source for candidate in found):
            raise why
        on_left_out(artifact, why.message)
    able = {candidate.plan.backend for candidate in found}
    for backend in grid.backends:
        if backend not in able:
            raise problems[backend]
    return _named(found, grid)


def _plans(
    device: DeviceProfile,
    artifact: Artifact,
    backend: str | None,
    grid: Grid,
    n_tokens: int,
    safety: Safety | None,
    tuned: Lookup | None,
) -> list[Plan]:
    """Return a plan for each combination of settings that this engine supports for a model.

    Raises:
        BackendUnavailableError: there is none.
        UsageError: one of them is impossible on any device.
    """
    context = _context(artifact, n_tokens)
    plans = []
    missing: BackendUnavailableError | None = None
    for request in _requests(grid):
        asked = replace(request, backend=backend, context=context, n_seq=1)
        try:
            plans.append(make_plan(device, artifact, asked, safety=safety, tuned=tuned))
        except BackendUnavailableError as error:
            missing = missing or error
    if missing is not None and not plans:
        raise missing
    return plans


def _requests(grid: Grid) -> list[PlanRequest]:
    """Return every combination of settings, without engines."""
    return [
        PlanRequest(require=accelerator, threads=threads, n_ubatch=n_ubatch, kv_type_k=kv, kv_type_v=kv, flash_attention=flash)
        for accelerator in grid.accelerators or (None,)
        for threads in grid.threads or (None,)
        for n_ubatch in grid.n_ubatch or (None,)
        for kv in grid.kv_types or (None,)
        for flash in grid.flash_attention or (None,)
    ]


def _context(artifact: Artifact, n_tokens: int) -> int:
    """Return a context that holds prompt and reply, at most the one that the model was built for.

    Raises:
        UsageError: the model was built for less.
    """
    built_for = artifact.facts.n_ctx_max
    if built_for is None:
        return max(n_tokens + 1, _MIN_CONTEXT)
    if n_tokens >= built_for:
        name = f"{artifact.name} ({artifact.path.name})"
        raise UsageError(
            f"{name} was built for {built_for:,} tokens, and {n_tokens + 1:,} are to be measured.",
            "Measure less: --prompt, --decode.",
        )
    return max(n_tokens + 1, min(_MIN_CONTEXT, built_for))


def _named(candidates: list[Candidate], grid: Grid) -> list[Candidate]:
    """Name the candidates by their differences."""
    models = _model_names(candidates)
    engines = {(candidate.plan.backend, candidate.plan.accelerator) for candidate in candidates}
    result = []
    for candidate, model in zip(candidates, models, strict=True):
        plan = candidate.plan
        parts = (
            (engines, plan.backend if plan.accelerator == "cpu" else f"{plan.backend} {plan.accelerator}"),
            (grid.threads, f"{plan.n_threads} thread{'s' if plan.n_threads > 1 else ''}"),
            (grid.n_ubatch, f"batch {plan.n_ubatch}"),
            (grid.kv_types, f"KV {plan.kv_type_k}"),
            (grid.flash_attention, f"flash attention {'on' if plan.flash_attention else 'off'}"),
        )
        name = ", ".join([model, *(text for choices, text in parts if len(choices) > 1)])
        result.append(Candidate(name, plan))
    return result


def _model_names(candidates: list[Candidate]) -> list[str]:
    """Return the models' names, or the names of their files and folders if several have the same name."""
    artifacts = {candidate.plan.artifact.path: candidate.plan.artifact for candidate in candidates}
    own = [artifact.name for artifact in artifacts.values()]
    names = {}
    for path, artifact in artifacts.items():
        is_unique = own.count(artifact.name) == 1
        names[path] = artifact.name if is_unique else path.stem if path.is_file() else f"{path.parent.name}/{path.name}"
    return [names[candidate.plan.artifact.path] for candidate in candidates]
