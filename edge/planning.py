"""From settings to the plan of a model: its files are found, and downloaded if they are missing.

Its draft model's and its adapters' likewise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from edge.errors import CancelledError, UsageError
from edge.formats.facts import is_for_embeddings

if TYPE_CHECKING:
    from edge.adapters import Adapter
    from edge.config.schema import Settings
    from edge.device.profile import DeviceProfile
    from edge.formats.artifact import Artifact
    from edge.names import Accelerator
    from edge.plan.receipt import Plan, PlanRequest
    from edge.plan.tuning import Tuning
    from edge.registry import EngineRow
    from edge.sources.base import DownloadProgress, OnProgress

__all__ = ["Progress", "make_planner"]

Progress = Callable[[str, float], "bool | None"]
"""Called with (stage, share done from 0 to 1); False stops it."""


def make_planner(chosen: Settings, on_progress: Progress | None = None, *, download: bool = True) -> Callable[[], Plan]:
    """Return a function that plans the model with what is known when it is called.

    Args:
        chosen: settings and arguments.
        on_progress, download: as for `edge.plan_model`.

    Raises:
        UsageError: settings exclude each other, or the model makes embeddings.
        ModelNotFoundError, DownloadError, ModelFileError: a model cannot be found or downloaded.
        CancelledError: on_progress said False.
    """
    from edge.device.detection import probe
    from edge.plan.adapters import check_formats, engine_for_adapters, plan_with_adapters
    from edge.plan.draft import plan_with_draft, without_draft
    from edge.plan.prefill import check_prefiller
    from edge.plan.receipt import PlanRequest

    prefill_with = chosen.engine.prefill_with
    if prefill_with not in (None, "off"):
        check_prefiller(prefill_with)
    exact, parallel, draft = chosen.kv.exact, chosen.engine.parallel, chosen.engine.draft
    if exact and parallel not in (None, 1):
        raise UsageError(
            f"engine.parallel is {parallel}, and kv.exact allows one reply at a time: others would change its last bits.",
            "Leave engine.parallel out, or turn kv.exact off.",
        )
    lora = chosen.engine.lora
    backend = engine_for_adapters(chosen.backend) if lora else chosen.backend
    request = PlanRequest(
        backend=backend,
        require=chosen.require,
        context=chosen.context,
        threads=chosen.threads,
        gpu_layers=chosen.gpu_layers,
        kv_type_k=chosen.kv_type_k,
        kv_type_v=chosen.kv_type_v,
        n_seq=1 if exact else parallel,
    )
    device = probe()
    check = partial(check_formats, backend=backend) if lora and backend else None
    choose = _find(chosen.model, request, chosen, device, on_progress, download=download, check=check)
    off = "kv.exact allows no guesses" if exact else "engine.speculate is off" if not chosen.engine.speculate else ""
    asked = PlanRequest(require=chosen.require, threads=chosen.threads)
    choose_draft = _find(draft, asked, chosen, device, on_progress, download=download) if draft and not off else None

    def plan_drafting(device: DeviceProfile, request: PlanRequest) -> Plan:
        if choose_draft is not None:
            return plan_with_draft(
                device,
                lambda left: choose(left, request),
                lambda left, main: choose_draft(left, replace(asked, context=main.n_ctx, n_seq=main.n_seq)),
            )
        alone = choose(device, request)
        return without_draft(alone, off) if draft else alone

    def plan_on(device: DeviceProfile) -> Plan:
        return _with_prefiller(chosen, device, request, plan_drafting)

    def find(model: Artifact) -> tuple[Adapter, ...]:
        from edge.catalog.adapters import find_adapters

        return find_adapters(lora, model, settings=chosen, download=download, on_progress=_reporting(on_progress))

    def plan() -> Plan:
        if not lora:
            return plan_on(device)
        return plan_with_adapters(device, plan_on, find, is_engine_asked=chosen.backend is not None)

    if on_progress is not None and on_progress("planning", 0.0) is False:
        raise CancelledError("Loading was stopped.")
    return plan


def _with_prefiller(
    chosen: Settings, device: DeviceProfile, request: PlanRequest, choose: Callable[[DeviceProfile, PlanRequest], Plan]
) -> Plan:
    """Return the plan of a model, on two engines where that was asked for, or measured to be faster.

    Args:
        chosen, device, request: as above.
        choose: plans it with its draft model.

    Raises:
        EdgeError: as `choose`, and where the other engine was asked for and cannot be used.
    """
    from edge.plan.make import make_plan
    from edge.plan.placement import rows_for, safety_here
    from edge.plan.prefill import plan_with_prefiller, plan_with_tuned_prefiller, without_prefiller
    from edge.plan.tuning import look_up

    name, cache_dir = chosen.engine.prefill_with, chosen.paths.cache_dir
    off = "kv.exact allows no numbers of another one" if chosen.kv.exact else "adapters" if chosen.engine.lora else ""
    if name == "off" or off:
        alone = choose(device, request)
        return without_prefiller(alone, f"{name} was asked for; {off}") if off and name not in (None, "off") else alone

    def choose_prefiller(left: DeviceProfile, main: Plan, backend: str) -> Plan:
        if (main.kv_type_k, main.kv_type_v) != ("f16", "f16"):
            raise UsageError(
                f"Two engines hand over keys and values as f16, and {main.kv_type_k} is asked for.",
                "Leave out --kv-type, or --prefill-with.",
            )
        rows = rows_for(replace(request, backend=backend))
        asked = replace(request, backend=backend, require=main.accelerator, context=main.n_ctx, n_seq=1, n_ubatch=main.n_ubatch)
        tuned = look_up(device, main.artifact, cache_dir=cache_dir)
        return make_plan(left, main.artifact, asked, safety=safety_here(device, rows, cache_dir), tuned=tuned)

    def tuning_of(plan: Plan) -> Tuning | None:
        return look_up(device, plan.artifact, cache_dir=cache_dir).tuning

    if name is not None:
        return plan_with_prefiller(
            device,
            name,
            lambda left: choose(left, request),
            lambda left, main: choose_prefiller(left, main, name),
            tuning_of,
        )
    plan = choose(device, request)
    if not chosen.kv.across_engines:
        return plan
    return plan_with_tuned_prefiller(device, request, plan, choose, choose_prefiller, tuning_of(plan))


def _find(
    name: str,
    request: PlanRequest,
    chosen: Settings,
    device: DeviceProfile,
    on_progress: Progress | None,
    *,
    download: bool,
    check: Callable[[Sequence[Artifact]], None] | None = None,
) -> Callable[[DeviceProfile, PlanRequest], Plan]:
    """Find the files of a model, downloading them if told to, and return what plans it for a device and a request.

    Args:
        name, request, chosen, device, on_progress, download: as above.
        check: raises an error if these files are of no use.
    """
    from edge.catalog.api import resolve_all
    from edge.plan.choosing import choose_plan, rank_formats
    from edge.plan.placement import rows_for, safety_here
    from edge.plan.tuning import look_up
    from edge.registry import load_entry

    formats = rank_formats(device, request, must_run=True)  # before gigabytes are downloaded for nothing
    artifacts = resolve_all(name, settings=chosen, download=download, on_progress=_reporting(on_progress), formats=formats)
    for artifact in artifacts:
        if artifact.header is not None and is_for_embeddings(artifact.header):
            raise UsageError(
                f"The model {artifact.name} makes embeddings, and generates no text.",
                "Choose one that chats; this one serves edge embed.",
            )
    if check is not None:
        check(artifacts)
    cache_dir = chosen.paths.cache_dir
    candidates = [(artifact, look_up(device, artifact, cache_dir=cache_dir)) for artifact in artifacts]
    here = {artifact.format for artifact in artifacts}
    safety = safety_here(device, [row for row in rows_for(request) if here & set(row.formats)], cache_dir)

    def why_failed(row: EngineRow, artifact: Artifact, accelerator: Accelerator) -> str:
        found: str = load_entry(row.why_failed)(artifact, accelerator, cache_dir)
        return found

    return lambda device, request: choose_plan(device, candidates, request, safety=safety, why_failed=why_failed)


def _reporting(on_progress: Progress | None) -> OnProgress:
    """Return what hears of the progress of downloads for somebody who hears of stages."""

    def report(progress: DownloadProgress) -> None:
        share = progress.done_bytes / progress.total_bytes if progress.total_bytes else 0.0
        if on_progress is not None and on_progress(progress.phase, share) is False:
            raise CancelledError(f"Fetching {progress.name} was stopped.", "Ask again to go on where it stopped.")

    return report
