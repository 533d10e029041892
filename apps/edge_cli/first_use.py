"""Compares the engines that can run a model before its first chat, once: what `edge tune --quick --once` does as well."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge.units import quoted
from edge_cli import output
from edge_cli.bench import BUSY_PROCESSORS, load_of_others

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge.bench.tune import Report
    from edge.config import Settings
    from edge.device.profile import DeviceProfile
    from edge.formats.artifact import Artifact
    from edge_cli.app import App

__all__ = ["gain_text", "is_settled", "measure_at_first", "skip"]

_BUSY_SHARE = 0.25  # of the processors
_MOST_BYTES = 10**9  # a larger model may take the minute for loading alone


def measure_at_first(app: App, settings: Settings) -> None:
    """Compare the engines for the model of the settings, if that was never done here and there is a choice.

    It takes a minute at most, Ctrl-C skips it for good, and nothing that goes wrong keeps the chat from starting. It is tried
    once, however it ends, and not at all where that cannot be noted; while other programs are busy it waits for another start.
    """
    from edge.catalog import resolve_all
    from edge.errors import EdgeError

    asked = (settings.backend, settings.require, settings.threads, settings.gpu_layers, settings.kv_type_k, settings.kv_type_v)
    if not settings.engine.measure or settings.engine.lora or any(value is not None for value in asked):
        return  # not all engines have adapters
    try:
        artifacts = resolve_all(settings.model, settings=settings, download=False)
    except EdgeError:
        return  # it is downloaded in the chat, which says what is wrong with it
    device = app.probe()
    if not _has_choice(device, artifacts) or is_settled(device, artifacts, settings):
        return
    try:
        if max(artifact.size_bytes for artifact in artifacts) <= _MOST_BYTES and not _is_busy(device):
            skip(device, artifacts, settings)  # what fails, or is killed, would take the minute again at the next start
            _measure(device, artifacts, settings)
    except EdgeError as error:
        output.note(" ".join(part for part in (error.message, error.hint) if part))


def is_settled(device: DeviceProfile, artifacts: Sequence[Artifact], settings: Settings) -> bool:
    """Return whether the engines were compared here for all formats of a model, or the comparison was skipped."""
    from edge.plan.placement import readers
    from edge.plan.tuning import is_settled

    cache_dir = settings.paths.cache_dir
    return all(
        is_settled(device, artifact, [row.name for row in readers(device, artifact)], cache_dir=cache_dir)
        for artifact in artifacts
    )


def skip(device: DeviceProfile, artifacts: Sequence[Artifact], settings: Settings) -> None:
    """Remember that the comparison was skipped, where nothing better is known.

    Raises:
        StorageError: that cannot be stored.
    """
    from edge.plan.placement import readers
    from edge.plan.tuning import look_up, remember

    cache_dir = settings.paths.cache_dir
    for artifact in artifacts:
        known = look_up(device, artifact, cache_dir=cache_dir).tuning
        engines = [row.name for row in readers(device, artifact)]
        remember(device, artifact, known, cache_dir=cache_dir, engines=engines)


def gain_text(artifact: Artifact, report: Report) -> str:
    """Return in a sentence what a comparison found."""
    tuning = report.tuning
    usual = tuning.reference.partition(" ")[0] or "the usual engine"
    if (pair := tuning.pair) is not None:
        times = tuning.default_turn_s / pair.turn_s
        return (
            f"{artifact.name}: {pair.prefill_with} for long prompts and {pair.backend} for replies answer {times:.1f} times as "
            f"fast as {usual} here, so both are used from now on."
        )
    if not report.is_better:
        return f"{artifact.name}: no other engine answers faster than {tuning.backend} here."
    prefill = tuning.prefill_tokens_per_s / tuning.default_prefill_tokens_per_s
    return (
        f"{artifact.name}: {tuning.backend} answers {tuning.default_turn_s / tuning.turn_s:.1f} times as fast as {usual} here "
        f"({prefill:.1f} times as fast prefill), so it is used from now on."
    )


def _has_choice(device: DeviceProfile, artifacts: Sequence[Artifact]) -> bool:
    from edge.plan.placement import readers

    return sum(len(readers(device, artifact)) for artifact in artifacts) > 1


def _is_busy(device: DeviceProfile) -> bool:
    """Return whether other programs compute so much that the result, which stays, would be theirs."""
    return load_of_others() > max(BUSY_PROCESSORS, _BUSY_SHARE * device.cpu.usable_logical)


def _measure(device: DeviceProfile, artifacts: Sequence[Artifact], settings: Settings) -> None:
    from edge.bench.candidates import engines_for
    from edge.bench.tune import QUICK_S, TuneOptions, tune

    able = [artifact for artifact in artifacts if engines_for(device, artifact)]
    if sum(len(engines_for(device, artifact)) for artifact in able) < 2:
        return
    names = " and ".join(dict.fromkeys(row.name for artifact in able for row in engines_for(device, artifact)))
    output.note(f"Once, for at most a minute: which of {names} answers faster here? Ctrl-C skips this.")
    try:
        with output.Status() as status:
            options = TuneOptions(QUICK_S, is_quick=True)
            reports = tune(device, able, options, cache_dir=settings.paths.cache_dir, on_progress=status.show_share)
    except KeyboardInterrupt:
        output.note(f"Skipped. To do it later: edge tune {quoted(settings.model)} --quick")
        return
    for artifact, report in zip(able, reports, strict=True):
        output.note(gain_text(artifact, report))
