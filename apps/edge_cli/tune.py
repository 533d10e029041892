"""`edge tune`: find and save the fastest settings for a model on this device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from edge.units import quoted
from edge_cli import output, signals
from edge_cli.app import App, pass_app
from edge_cli.bench import find_models
from edge_cli.completers import complete_model
from edge_cli.first_use import is_settled, skip
from edge_cli.group import examples
from edge_cli.options import backends_option, json_option, require_exclusive

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge.bench.tune import Report
    from edge.bench.tuner import Trial
    from edge.config import Settings
    from edge.formats.artifact import Artifact
    from edge.plan.speed import EngineSpeed
    from edge.plan.tuning import Record, Tuning

__all__ = ["tune"]

_MINUTES = 3.0
# Measured on SmolLM2-135M, docs/kv.md: share of tokens with the same likeliest token.
_KV_COSTS = {
    "q8_0": "half the memory of f16; docs/kv.md measured the same likeliest token for about 95% of all tokens",
    "bf16": "as much memory as f16, on OpenVINO where the CPU has AMX: prompts are about twice as fast, and replies slower",
    "u8": "0.63 of the memory of f16, on OpenVINO; docs/openvino.md has what it loses",
    "q4_0": "a quarter of the memory of f16; docs/kv.md measured the same likeliest token for about 88% of all tokens",
}


@click.command(
    epilog=examples(
        "edge tune",
        "edge tune smollm2-135m --minutes 10",
        "edge tune smollm2-135m --quick",
        "edge tune smollm2-135m --quick --once",
        "edge tune smollm2-135m --kv-type q8_0",
        "edge tune --show",
        "edge tune smollm2-135m --forget",
    )
)
@click.argument("model", required=False, metavar="[MODEL]", shell_complete=complete_model)
@click.option(
    "--minutes",
    type=click.FloatRange(min=0, min_open=True, max=1440),
    metavar="N",
    help=f"Approximate time limit.  [default: {_MINUTES}]",
)
@click.option(
    "--quick",
    "is_quick",
    is_flag=True,
    help="Only compare the engines, with their usual settings, within a minute.",
)
@click.option(
    "--once",
    "is_once",
    is_flag=True,
    help="Do nothing if the engines that are here were compared before, or that was skipped.",
)
@backends_option
@click.option(
    "--kv-type",
    "kv_types",
    type=click.Choice(list(_KV_COSTS)),
    multiple=True,
    help="Also try this type of KV cache; not tried by default, since most save memory and lose quality.",
)
@click.option("--show", "is_shown", is_flag=True, help="Show the saved settings of MODEL, or all.")
@click.option("--forget", "is_forgotten", is_flag=True, help="Delete the saved settings of MODEL, or all.")
@json_option
@pass_app
def tune(app: App, model: str | None, **options: Any) -> int:
    """Find and save the fastest settings for a model on this device.

    Tries engine, threads, batch and flash attention in turn, and whether one engine should prefill long prompts while another
    one decodes. A change is adopted only if its gain exceeds the spread of the
    measurements; none of them changes the answers beyond rounding, which is measured: an engine that is more than 0.01 nats
    away from the file's weights computed exactly, and further than the usual engine, or a format that diverges by more than
    0.01 nats from the published one, is shown with its gain, and not taken. The model is then loaded with these settings,
    unless a flag or a setting overrides them. If a model is here in several formats, each is tuned and all are then compared;
    edge runs the fastest.
    """
    require_exclusive(("--show", options["is_shown"]), ("--forget", options["is_forgotten"]))
    require_exclusive(("--quick", options["is_quick"]), ("--minutes", options["minutes"]))
    require_exclusive(("--quick", options["is_quick"]), ("--kv-type", options["kv_types"]))
    settings = app.settings()
    if options["is_forgotten"]:
        return _forget(settings, model)
    if options["is_shown"]:
        return _show_all(settings, as_json=options["as_json"]) if model is None else _show_one(app, settings, model, options)
    return _tune(app, settings, model, options)


def _tune(app: App, settings: Settings, model: str | None, options: dict[str, Any]) -> int:
    from edge.bench.tune import QUICK_S, TuneOptions, tune
    from edge.errors import UsageError
    from edge.plan.checks import engines_with

    artifacts = find_models(app, settings, (model,) if model else (), options["backends"])
    if options["kv_types"] and all(artifact.format != "gguf" for artifact in artifacts):
        names = " and ".join(dict.fromkeys(artifact.name for artifact in artifacts))
        raise UsageError(f"{names} has a fixed type of KV cache; only a GGUF can use another.", "Leave out --kv-type.")
    for kind in options["kv_types"]:
        if not any(engines_with(kind, artifact, app.probe().cpu) for artifact in artifacts):
            raise UsageError(
                f"No engine can store a KV cache as {kind} on this CPU.", "Leave it out; docs/openvino.md says what bf16 needs."
            )
        output.note(f"KV cache as {kind}: {_KV_COSTS[kind]}.")
    if options["is_once"] and is_settled(app.probe(), artifacts, settings):
        if options["as_json"]:
            _show_one(app, settings, model or settings.model, options)
        return 0
    chosen = TuneOptions(
        QUICK_S if options["is_quick"] else 60 * (options["minutes"] or _MINUTES),
        backends=options["backends"],
        kv_types=options["kv_types"],
        is_quick=options["is_quick"],
    )
    cache_dir = settings.paths.cache_dir
    try:
        with output.Status() as status:
            reports = tune(app.probe(), artifacts, chosen, cache_dir=cache_dir, on_progress=status.show_share)
    except KeyboardInterrupt:
        if options["is_once"]:
            skip(app.probe(), artifacts, settings)
            output.note("Skipped. Leave out --once to do it later.")
        else:
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
            _show_tuning(report.tuning)
            output.line()
    for note in _notes(artifacts, reports):
        output.note(note)
    return 0


def _report_json(artifact: Artifact, report: Report) -> dict[str, Any]:
    import msgspec

    return {
        "model": artifact.name,
        "format": artifact.format,
        "path": str(artifact.path),
        "tuning": _tuning_json(report.tuning),
        "is_better": report.is_better,
        "is_complete": report.outcome.is_complete,
        "seconds": round(report.seconds, 1),
        "trials": msgspec.to_builtins(report.outcome.trials),
    }


def _tuning_json(tuning: Tuning) -> dict[str, Any]:
    import msgspec

    found: dict[str, Any] = msgspec.to_builtins(tuning)
    pair = [(found["pair"], tuning.pair)] if tuning.pair is not None else []
    for row, speed in [*zip(found["engines"], tuning.engines, strict=True), *pair]:
        row["turn_s"] = round(speed.turn_s, 4)
        row["pass_ms"] = dict(speed.pass_ms)
        row["pass_costs"] = {size: round(cost, 3) for size, cost in speed.pass_costs.items()}
    return {**found, "turn_s": round(tuning.turn_s, 4), "default_turn_s": round(tuning.default_turn_s, 4)}


def _trial_cells(trial: Trial) -> tuple[str, ...]:
    speed = f"{1 + trial.gain:.2f}x" if trial.gain is not None else "-"
    spread = f"±{50 * trial.spread:.0f}%" if trial.spread is not None and trial.n_rounds > 1 else ""
    return trial.knob, trial.value, trial.incumbent, speed, spread, "taken" if trial.is_taken else trial.why


def _rows(tuning: Tuning) -> list[tuple[str, str]]:
    """Return a tuning as rows of name and value."""
    from edge.plan.speed import TURN_PROMPT, TURN_REPLY

    kv = tuning.kv_type_k if tuning.kv_type_k == tuning.kv_type_v else f"K {tuning.kv_type_k}, V {tuning.kv_type_v}"
    return [
        ("engine", f"{tuning.backend} on {tuning.accelerator}"),
        (
            "a turn",
            f"{tuning.turn_s:.2f} s, default {tuning.default_turn_s:.2f} s: {TURN_PROMPT} new tokens, {TURN_REPLY} of reply",
        ),
        *([("two engines", _pair_text(tuning.pair))] if tuning.pair is not None else []),
        ("threads", f"{tuning.threads}, for prefill {tuning.threads_batch}"),
        ("batch", f"{tuning.n_ubatch} tokens"),
        ("flash attention", "on" if tuning.flash_attention else "off"),
        ("KV cache", kv),
        ("decode", f"{tuning.decode_tokens_per_s:,.1f} tokens/s, default {tuning.default_decode_tokens_per_s:,.1f}"),
        ("prefill", f"{tuning.prefill_tokens_per_s:,.1f} tokens/s, default {tuning.default_prefill_tokens_per_s:,.1f}"),
        ("measured", f"{tuning.measured_on}, with {tuning.n_prompt:,} prompt tokens and {tuning.n_decode:,} generated tokens"),
    ]


def _pair_text(pair: EngineSpeed) -> str:
    return f"{pair.prefill_with} prefills, {pair.backend} decodes: {pair.turn_s:.2f} s a turn"


def _show_tuning(tuning: Tuning) -> None:
    output.table(_rows(tuning))
    if tuning.engines:
        output.line()
        headings = (
            "engine",
            "a turn",
            "prefill t/s",
            "decode t/s",
            "load",
            "memory",
            "loss",
            "from exact weights",
            "cost of a pass over 2, 4, 8, 16",
        )
        speeds = [*tuning.engines, *([tuning.pair] if tuning.pair is not None else [])]
        output.table([_engine_cells(speed, tuning) for speed in speeds], headings)


def _engine_cells(speed: EngineSpeed, tuning: Tuning) -> tuple[str, ...]:
    from edge.units import size_text

    name = f"{speed.backend} on {speed.accelerator}"
    if speed.prefill_with:
        name += f", {speed.prefill_with} prefills"
    loss = "not measured"
    if speed.divergence is not None and speed.agreement is not None:
        loss = f"{speed.divergence:.4f} nats, {speed.agreement:.0%} the same"
    costs = [f"{cost:.2f}" for size, cost in speed.pass_costs.items() if size > 1]
    return (
        name,
        f"{speed.turn_s:.2f} s",
        f"{speed.prefill_tokens_per_s:,.1f}",
        f"{speed.decode_tokens_per_s:,.1f}",
        f"{speed.load_s:.1f} s",
        size_text(speed.peak_bytes) if speed.peak_bytes else "-",
        "reference" if name == tuning.reference and not speed.divergence else loss,
        f"{speed.exact:.4f} nats" if speed.exact is not None else "-",
        " ".join(costs) or "-",
    )


def _notes(artifacts: Sequence[Artifact], reports: Sequence[Report]) -> list[str]:
    notes = []
    if len(reports) > 1:
        pairs = list(zip(reports, artifacts, strict=True))
        equal = [pair for pair in pairs if pair[0].tuning.is_lossless]
        if len(equal) > 1:
            best = min(equal, key=lambda pair: pair[0].tuning.turn_s)
            notes.append(f"Fastest turn of a chat, so edge runs it: {best[1].kind}.")
        for report, artifact in pairs:
            if report.tuning.divergence is not None and (report, artifact) not in equal:
                notes.append(
                    f"{artifact.kind} diverges by {report.tuning.divergence:.3f} nats from the model that was published, so "
                    f"edge does not choose it for its speed. To run it: edge run -m {quoted(artifact.path)}"
                )
    if not any(report.is_better for report in reports):
        notes.append("No setting beat the defaults by more than the spread of the measurements, so the defaults are saved.")
    if not all(report.outcome.is_complete for report in reports):
        is_quick = any(report.tuning.is_quick for report in reports)
        notes.append(f"Time ran out before everything was tried; {'edge tune' if is_quick else '--minutes'} gives it more.")
    notes.append("This model is loaded with these settings from now on. To undo: edge tune --forget")
    return notes


def _show_one(app: App, settings: Settings, model: str, options: dict[str, Any]) -> int:
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
                "tuning": _tuning_json(lookup.tuning) if lookup.tuning is not None else None,
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
            _show_tuning(lookup.tuning)
        else:
            why = f": {lookup.ignored}" if lookup.ignored else ""
            name = artifact.name if len(found) == 1 else f"{artifact.name} as {artifact.format}"
            output.note(f"No saved settings apply to {name} here{why}. Measure it with: edge tune {quoted(model)}")
    return 0 if any(lookup.tuning for _, lookup in found) else 1


def _show_all(settings: Settings, *, as_json: bool) -> int:
    from edge.plan.tuning import records

    known, problem = records(settings.paths.cache_dir)
    if as_json:
        rows = [
            {
                "model": record.model_name,
                "device": record.device_name,
                "tuning": _tuning_json(record.tuning) if record.tuning is not None else None,
            }
            for record in known
        ]
        output.json_object({"records": rows, "problem": problem})
    else:
        cells = [_record_cells(record) for record in known]
        output.table(cells, ("model", "engine", "threads", "", "decode", "measured", "device"))
        if not known:
            output.note("No settings are saved yet. Measure a model with: edge tune MODEL")
    if problem:
        output.note(f"Some of the saved settings could not be read: {problem}.")
    return 0


def _record_cells(record: Record) -> tuple[str, ...]:
    tuning = record.tuning
    if tuning is None:
        return record.model_name, "skipped", "", "", "", "", record.device_name
    return (
        record.model_name,
        f"{tuning.backend} on {tuning.accelerator}",
        f"{tuning.threads}/{tuning.threads_batch} threads",
        f"batch {tuning.n_ubatch}",
        f"{tuning.decode_tokens_per_s:,.1f} tokens/s",
        tuning.measured_on,
        record.device_name,
    )


def _forget(settings: Settings, model: str | None) -> int:
    from edge.catalog import resolve_all
    from edge.plan.tuning import forget

    cache_dir = settings.paths.cache_dir
    artifacts = resolve_all(model, settings=settings, download=False) if model else [None]
    count = sum(forget(cache_dir, artifact=artifact) for artifact in artifacts)
    output.note(f"Deleted saved settings: {count}." if count else "There are no saved settings to delete.")
    return 0
