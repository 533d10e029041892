"""`edge models recommend`: which models suit this device, and how fast they would answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from edge.units import count_text, duration_text, quoted, size_text
from edge_cli import output
from edge_cli.app import App, pass_app
from edge_cli.group import examples
from edge_cli.options import json_option

if TYPE_CHECKING:
    from edge.bench.recommend import Measured, Prediction, Recommendation, Roof
    from edge.config import Settings

__all__ = ["recommend"]

_HEADINGS = ("model", "size", "parameters", "memory", "first token", "tokens/s", "measured", "licence", "good for")
_N_PROMPT, _N_DECODE = 256, 32


@click.command(
    epilog=examples("edge models recommend", "edge models recommend --check", "edge models recommend --json | jq -r '.best'")
)
@click.option("--check", "is_checked", is_flag=True, help="Measure the models on this device, too: some seconds each.")
@json_option
@pass_app
def recommend(app: App, is_checked: bool, as_json: bool) -> int:
    """Show which models of the catalogue suit this device, and how fast they would answer on its CPU.

    Speeds are predicted from the memory bandwidth and the computation measured here, in about two seconds: the time to the
    first token of an answer to a prompt of 256 tokens, and tokens per second. For models on this device that were measured (by
    edge tune, or now with --check) the measured speed and the error of the prediction are shown, and the other predictions are
    corrected by it. Nothing is downloaded.
    """
    from edge.bench.recommend import best_of, measure_roof
    from edge.bench.recommend import recommend as recommend_models

    settings, device = app.settings(), app.probe()
    with output.Status() as status:
        status.show("measuring memory and computation")
        roof = measure_roof(
            max(1, device.cpu.usable_performance or device.cpu.usable_efficiency), device.memory.available_bytes
        )
        measured = _measure(app, settings, status) if is_checked else {}
    models = recommend_models(settings, device, roof, measured)
    best = best_of(models)
    if as_json:
        output.json_object(_json(roof, models, best))
        return 0
    output.table([_row(one) for one in models], _HEADINGS)
    limits = f"{roof.bytes_per_s / 1e9:.1f} GB/s and {roof.flops_per_s / 1e9:.0f} GFLOP/s on {roof.n_threads} threads"
    output.note(f"\n{limits} were measured. ~ is predicted, or as published.")
    if errors := [one.errors for one in models if one.errors is not None]:
        worst = max(abs(error) for pair in errors for error in pair)
        output.note(f"Predictions for {len(errors)} models that were measured here are off by {worst:.0%} at most.")
    if best is not None:
        how = f"   edge models pull {quoted(best.name)}" if not best.is_here else f"   edge chat -m {quoted(best.name)}"
        output.note(f"The largest that fits and can be read along: {best.name}.{how}")
    return 0


def _measure(app: App, settings: Settings, status: output.Status) -> dict[str, Measured]:
    """Measure the chat models on this device."""
    from edge.bench.process import Worker
    from edge.bench.recommend import Measured
    from edge.catalog import list_models, load_catalog
    from edge.errors import EdgeError

    catalog, found = load_catalog(settings), {}
    for model in list_models(settings):
        entry = catalog.get(model.name)
        if entry is None or entry.base or entry.embeddings or entry.voice or model.format != "gguf":
            continue
        status.show(f"measuring {model.name}")
        try:
            plan = app.plan(str(model.path), settings=settings, download=False)
            with Worker(plan) as worker:
                worker.run(_N_PROMPT, _N_DECODE)
                sample = worker.run(_N_PROMPT, _N_DECODE)
        except EdgeError as error:
            output.note(f"{model.name} cannot be measured: {error.message}")
            continue
        found[model.name] = Measured(sample.n_prompt / sample.prefill_s, sample.n_decode / sample.decode_s)
    return found


def _row(one: Recommendation) -> tuple[str, ...]:
    entry = one.entry
    size = f"{'' if one.is_exact else '~'}{size_text(one.size_bytes)}" if one.size_bytes else ""
    count = count_text(entry.parameters) if entry.parameters else ""
    licence = entry.licence + (" (to accept)" if entry.accept_licence else "")
    first = f"~{duration_text(one.predicted.first_token_s)}" if one.predicted is not None else ""
    speed = f"~{one.predicted.decode_tokens_per_s:.0f}" if one.predicted is not None else ""
    name = one.name + (" (here)" if one.is_here else "")
    return name, size, count, one.verdict or "", first, speed, _measured_text(one), licence, entry.description


def _measured_text(one: Recommendation) -> str:
    """Return the measured speeds, and how far the predictions are off."""
    if one.measured is None or one.errors is None:
        return ""
    prefill, decode = one.errors
    speed = one.measured
    return (
        f"{duration_text(speed.first_token_s)}, {speed.decode_tokens_per_s:.0f} tokens/s "
        f"(predicted {decode:+.0%}, prefill {prefill:+.0%})"
    )


def _json(roof: Roof, models: Sequence[Recommendation], best: Recommendation | None) -> dict[str, Any]:
    def speed(value: Prediction | None) -> dict[str, float] | None:
        if value is None:
            return None
        names = ("first_token_s", "prefill_tokens_per_s", "decode_tokens_per_s")
        return {name: getattr(value, name) for name in names}

    return {
        "best": best.name if best is not None else None,
        "bytes_per_s": roof.bytes_per_s,
        "flops_per_s": roof.flops_per_s,
        "n_threads": roof.n_threads,
        "models": [
            {
                "name": one.name,
                "is_here": one.is_here,
                "size_bytes": one.size_bytes,
                "is_size_exact": one.is_exact,
                "need_bytes": one.need_bytes,
                "memory": one.verdict,
                "parameters": one.entry.parameters,
                "licence": one.entry.licence,
                "accept_licence": one.entry.accept_licence,
                "predicted": speed(one.predicted),
                "measured": speed(one.measured),
                "prefill_error": one.errors[0] if one.errors is not None else None,
                "decode_error": one.errors[1] if one.errors is not None else None,
            }
            for one in models
        ],
    }
