"""`edge tune`: find and save the fastest settings for a model on this device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from edge_cli import output, signals
from edge_cli.app import App, pass_app
from edge_cli.bench import find_models
from edge_cli.completers import complete_backend, complete_model
from edge_cli.group import examples
from edge_cli.options import json_option, require_exclusive

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge.bench.tune import Report
    from edge.bench.tuner import Trial
    from edge.config import Settings
    from edge.formats.artifact import Artifact
    from edge.plan.tuning import Tuning

__all__ = ["tune"]

# Measured on SmolLM2-135M, docs/kv.md: share of tokens with the same likeliest token.
_KV_COSTS = {
    "q8_0": "half the memory of f16; docs/kv.md measured the same likeliest token for about 95% of all tokens",
    "q4_0": "a quarter of the memory of f16; docs/kv.md measured the same likeliest token for about 88% of all tokens",
}


@click.command(
    epilog=examples(
        "edge tune",
        "edge tune smollm2-135m --minutes 10",
        "edge tune smollm2-135m --kv-type q8_0",
        "edge tune --show",
        "edge tune smollm2-135m --forget",
    )
)
@click.argument("model", required=False, metavar="[MODEL]", shell_complete=complete_model)
@click.option(
    "--minutes",
    type=click.FloatRange(min=0, min_open=True, max=1440),
    default=3.0,
    show_default=True,
    metavar="N",
    help="Approximate time limit.",
)
@click.option(
    "--backend", "backends", metavar="NAME", multiple=True, shell_complete=complete_backend, help="Engine; may be repeated."
)
@click.option(
    "--kv-type",
    "kv_types",
    type=click.Choice(list(_KV_COSTS)),
    multiple=True,
    help="Also try this type of KV cache: it saves memory but loses quality, so it is not tried by default.",
)
@click.option("--show", "is_shown", is_flag=True, help="Show the saved settings of MODEL, or all.")
@click.option("--forget", "is_forgotten", is_flag=True, help="Delete the saved settings of MODEL, or all.")
@json_option
@pass_app
def tune(app: App, model: str | None, **options: Any) -> int:
    """Find and save the fastest settings for a model on this device.

    Tries engine, threads, batch and flash attention in turn. A change is adopted only if its gain exceeds the spread of the
    measurements; none of them changes the answers beyond rounding. The model is then loaded with these settings, unless a flag
    or a setting overrides them. If a model is here in several formats, each is tuned and all are then compared; edge runs the
    fastest.
    """
    require_exclusive(("--show", options["is_shown"]), ("--forget", options["is_forgotten"]))
    settings = app.settings()
    if options["is_forgotten"]:
        return _forget(settings, model)
    if options["is_shown"]:
        return _show_all(settings, as_json=options["as_json"]) if model is None else _show_one(app, settings, model, options)
    return _tune(app, settings, model, options)


def _tune(app: App, settings: Settings, model: str | None, options: dict[str, Any]) -> int:
    from edge.bench.tune import TuneOptions, tune
    from edge.errors import UsageError

    artifacts = find_models(app, settings, (model,) if model else (), options["backends"])
    if options["kv_types"] and all(artifact.format != "gguf" for artifact in artifacts):
        names = " and ".join(dict.fromkeys(artifact.name for artifact in artifacts))
        raise UsageError(f"{names} has a fixed type of KV cache; only a GGUF can use another.", "Leave out --kv-type.")
    for kind in options["kv_types"]:
        output.note(f"KV cache as {kind}: {_KV_COSTS[kind]}.")
    chosen = TuneOptions(60 * options["minutes"], backends=options["backends"], kv_types=options["kv_types"])
    cache_dir = settings.paths.cache_dir
    try:
        with output.Status() as status:
            reports = tune(app.probe(), artifacts, chosen, cache_dir=cache_dir, on_progress=status.show_share)
    except KeyboardInterrupt:
        output.note("Interrupted. Nothing was saved; the settings saved before still apply.")
        return signals.exit_code()
    if options["as_json"]:
        found = [_report_json(artifact, report) for artifact, report in zip(artifacts, reports, strict=True)]
        output.json_object({"formats": found} if len(found) > 1 else found[0])
    else:
        for artifact, report in zip(artifacts, reports, strict=True):
            if len(artifacts) > 1:
                output.line(artifact.kind)
            output.table([_trial_cells(trial) for trial in report.outcome.trials], ("", "tried", "against", "speed", "", ""))
            output.line()
            output.table(_rows(report.tuning))
            output.line()
    for note in _notes(reports):
        output.note(note)
    if len(artifacts) > 1:
        best = max(zip(reports, artifacts, strict=True), key=lambda pair: pair[0].tuning.decode_tokens_per_s)
        output.note(f"Fastest decode, so edge runs it: {best[1].kind}.")
    return 0


def _report_json(artifact: Artifact, report: Report) -> dict[str, Any]:
    import msgspec

    return {
        "model": artifact.name,
        "format": artifact.format,
        "path": str(artifact.path),
        "tuning": msgspec.to_builtins(report.tuning),
        "is_better": report.is_better,
        "is_complete": report.outcome.is_complete,
        "seconds": round(report.seconds, 1),
        "trials": msgspec.to_builtins(report.outcome.trials),
    }


def _trial_cells(trial: Trial) -> tuple[str, ...]:
    speed = f"{1 + trial.gain:.2f}x" if trial.gain is not None else "-"
    spread = f"±{50 * trial.spread:.0f}%" if trial.spread is not None and trial.n_rounds > 1 else ""
    return trial.knob, trial.value, trial.incumbent, speed, spread, "taken" if trial.is_taken else trial.why


def _rows(tuning: Tuning) -> list[tuple[str, str]]:
    """Return a tuning as rows of name and value."""
    kv = tuning.kv_type_k if tuning.kv_type_k == tuning.kv_type_v else f"K {tuning.kv_type_k}, V {tuning.kv_type_v}"
    return [
        ("engine", f"{tuning.backend} on {tuning.accelerator}"),
        ("threads", f"{tuning.threads}, for prefill {tuning.threads_batch}"),
        ("batch", f"{tuning.n_ubatch} tokens"),
        ("flash attention", "on" if tuning.flash_attention else "off"),
        ("KV cache", kv),
        ("decode", f"{tuning.decode_tokens_per_s:,.1f} tokens/s, default {tuning.default_decode_tokens_per_s:,.1f}"),
        ("prefill", f"{tuning.prefill_tokens_per_s:,.1f} tokens/s, default {tuning.default_prefill_tokens_per_s:,.1f}"),
        ("measured", f"{tuning.measured_on}, with {tuning.n_prompt:,} prompt tokens and {tuning.n_decode:,} generated tokens"),
    ]


def _notes(reports: Sequence[Report]) -> list[str]:
    notes = []
    if not any(report.is_better for report in reports):
        notes.append("No setting beat the defaults by more than the spread of the measurements, so the defaults are saved.")
    if not all(report.outcome.is_complete for report in reports):
        notes.append("Time ran out before everything was tried; --minutes gives it more.")
    notes.append("This model is loaded with these settings from now on. To undo: edge tune --forget")
    return notes


def _show_one(app: App, settings: Settings, model: str, options: dict[str, Any]) -> int:
    import msgspec

    from edge.catalog import resolve_all
    from edge.plan.tuning import look_up

    artifacts = resolve_all(model, settings=settings, download=False)
    device, cache_dir = app.probe(), settings.paths.cache_dir
    found = [(artifact, look_up(device, artifact, cache_dir=cache_dir)) for artifact in artifacts]
    if options["as_json"]:
        kept = [
            {
                "model": artifact.name,
                "format": artifact.format,
                "tuning": msgspec.to_builtins(lookup.tuning) if lookup.tuning is not None else None,
                "ignored": lookup.ignored,
            }
            for artifact, lookup in found
        ]
        output.json_object({"formats": kept} if len(kept) > 1 else kept[0])
        return 0 if any(lookup.tuning for _, lookup in found) else 1
    for artifact, lookup in found:
        if len(found) > 1:
            output.line(artifact.kind)
        if lookup.tuning is not None:
            output.table(_rows(lookup.tuning))
        else:
            why = f": {lookup.ignored}" if lookup.ignored else ""
            name = artifact.name if len(found) == 1 else f"{artifact.name} as {artifact.format}"
            output.note(f"No saved settings apply to {name} here{why}. Measure it with: edge tune {model}")
    return 0 if any(lookup.tuning for _, lookup in found) else 1


def _show_all(settings: Settings, *, as_json: bool) -> int:
    import msgspec

    from edge.plan.tuning import records

    known, problem = records(settings.paths.cache_dir)
    if as_json:
        rows = [
            {"model": record.model_name, "device": record.device_name, "tuning": msgspec.to_builtins(record.tuning)}
            for record in known
        ]
        output.json_object({"records": rows, "problem": problem})
    else:
        cells = [
            (
                record.model_name,
                f"{record.tuning.backend} on {record.tuning.accelerator}",
                f"{record.tuning.threads}/{record.tuning.threads_batch} threads",
                f"batch {record.tuning.n_ubatch}",
                f"{record.tuning.decode_tokens_per_s:,.1f} tokens/s",
                record.tuning.measured_on,
                record.device_name,
            )
            for record in known
        ]
        output.table(cells, ("model", "engine", "threads", "", "decode", "measured", "device"))
        if not known:
            output.note("No settings are saved yet. Measure a model with: edge tune MODEL")
    if problem:
        output.note(f"Some of the saved settings could not be read: {problem}.")
    return 0


def _forget(settings: Settings, model: str | None) -> int:
    from edge.catalog import resolve_all
    from edge.plan.tuning import forget

    cache_dir = settings.paths.cache_dir
    artifacts = resolve_all(model, settings=settings, download=False) if model else [None]
    count = sum(forget(cache_dir, artifact=artifact) for artifact in artifacts)
    output.note(f"Deleted saved settings: {count}." if count else "There are no saved settings to delete.")
    return 0
