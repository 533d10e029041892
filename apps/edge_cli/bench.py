"""`edge bench`: measure the speed of models on this device, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge.names import ACCELERATORS, KV_TYPES
from edge.units import duration_text, size_text
from edge_cli import output, signals
from edge_cli.app import App, pass_app
from edge_cli.completers import complete_model
from edge_cli.group import examples
from edge_cli.options import backends_option, json_option, plot_option

if TYPE_CHECKING:
    from edge.bench.values import Result, Row, Stat
    from edge.config import Settings
    from edge.formats.artifact import Artifact

__all__ = ["BUSY_PROCESSORS", "bench", "find_models", "load_of_others"]

BUSY_PROCESSORS = 0.5
"""Other programs that use more make measurements doubtful."""
_COLUMNS = ("model", "first token", "prefill t/s", "decode t/s", "to first", "load", "memory", "of bandwidth", "J/token")
_N_SPEED_COLUMNS = 5


@click.command(
    epilog=examples(
        "edge bench",
        "edge bench smollm2-135m smollm2-converted/onnx-int4",
        "edge bench Q4_0.gguf Q4_K_M.gguf --threads 2 --threads 4 --reps 9",
        "edge bench smollm2-135m --kv-type f16 --kv-type q8_0 --plot bench.svg",
        "edge bench smollm2-135m --json | jq .rows[0].decode_tokens_per_s.median",
    )
)
@click.argument("models", nargs=-1, metavar="[MODEL]...", shell_complete=complete_model)
@backends_option
@click.option("--require", "accelerators", type=click.Choice(ACCELERATORS), multiple=True, help="Accelerator; may be repeated.")
@click.option("--threads", type=click.IntRange(min=1), multiple=True, metavar="N", help="CPU threads; may be repeated.")
@click.option(
    "--batch",
    "batches",
    type=click.IntRange(min=1),
    multiple=True,
    metavar="N",
    help="Tokens a pass of prefill; may be repeated.",
)
@click.option("--kv-type", "kv_types", type=click.Choice(KV_TYPES), multiple=True, help="KV cache; may be repeated.")
@click.option(
    "--flash-attention", "flash", type=click.Choice(["on", "off"]), multiple=True, help="Fused attention; may be repeated."
)
@click.option(
    "--prompt", type=click.IntRange(1, 131072), default=512, show_default=True, metavar="TOKENS", help="Tokens of the prompt."
)
@click.option(
    "--decode", type=click.IntRange(1, 131072), default=128, show_default=True, metavar="TOKENS", help="Tokens to generate."
)
@click.option(
    "--reps", type=click.IntRange(1, 1000), default=5, show_default=True, metavar="N", help="Rounds over all candidates."
)
@click.option("--untuned", is_flag=True, help="Ignore the results of edge tune.")
@plot_option
@json_option
@pass_app
def bench(app: App, models: tuple[str, ...], **options: Any) -> int:
    """Measure the speed of models on this device, side by side.

    Without a MODEL it is the default model. Every model runs in every format that is here, on every engine that supports it or
    on those named with --backend; repeated options are all tried. Candidates take turns, each in its own process. The results
    are medians, with the interquartile range as spread. Ctrl-C shows the results so far.
    """
    from edge.bench.candidates import Grid, find_candidates
    from edge.bench.run import Options, run_bench

    output.check_target(options["plot_file"])
    settings = app.settings()
    artifacts = find_models(app, settings, models, options["backends"])
    device = app.probe()
    grid = Grid(
        backends=options["backends"],
        accelerators=options["accelerators"],
        threads=options["threads"],
        n_ubatch=options["batches"],
        kv_types=options["kv_types"],
        flash_attention=tuple(value == "on" for value in options["flash"]),
        is_tuned=not options["untuned"],
    )
    n_tokens = options["prompt"] + options["decode"]
    candidates = find_candidates(
        device, artifacts, grid, n_tokens=n_tokens, cache_dir=settings.paths.cache_dir, on_left_out=_note_left_out
    )
    chosen = Options(n_prompt=options["prompt"], n_decode=options["decode"], n_rounds=options["reps"])
    with output.Status() as status:
        result = run_bench(candidates, chosen, device, on_progress=status.show_share)
    _show(result, as_json=options["as_json"])
    if options["plot_file"] is not None:  # last, so that the results are shown even if it cannot be written
        from edge.bench.plot import plot

        output.write_file(options["plot_file"], plot(result))
    if not result.is_complete and not any(row.error for row in result.rows):
        return signals.exit_code()
    return 1 if any(row.error for row in result.rows) else 0


def _note_left_out(artifact: Artifact, why: str) -> None:
    output.note(output.plain(f"Left out: {artifact.format}. {why}"))


def find_models(app: App, settings: Settings, names: tuple[str, ...], backends: tuple[str, ...] = ()) -> list[Artifact]:
    """Return the models for names, paths and references, downloaded if necessary; the default model without a name.

    A model in several formats gives all of them that are here and can be run by these engines; () for all engines.

    Raises:
        ModelNotFoundError, DownloadError, ModelFileError: a model is unavailable or unusable.
    """
    from edge.catalog import resolve_all
    from edge.plan import PlanRequest
    from edge.plan.choosing import rank_formats
    from edge_cli.progress import PullProgress

    device = app.probe()
    ranked = [rank_formats(device, PlanRequest(backend=name)) for name in backends or (settings.backend,)]
    formats = tuple(dict.fromkeys(form for forms in ranked for form in forms))
    found: dict[Path, Artifact] = {}
    with PullProgress() as progress:
        for name in names or (settings.model,):
            artifacts = resolve_all(name, settings=settings, on_progress=progress.report, formats=formats)
            # A folder may hold formats that no engine here supports; they are left out unless there is nothing else.
            able = [artifact for artifact in artifacts if artifact.format in formats] or artifacts
            found.update({artifact.path: artifact for artifact in able})
    return list(found.values())


def _show(result: Result, *, as_json: bool) -> None:
    import msgspec

    if as_json:
        output.json_object(msgspec.to_builtins(result))
    else:
        output.wide_table(_COLUMNS, [_cells(row) for row in result.rows], _N_SPEED_COLUMNS)
    for note in _notes(result):
        output.note(note)


def _cells(row: Row) -> list[str]:
    return [
        row.name,
        f"{1000 * row.first_token_s.median:,.0f} ms" if row.first_token_s else "",
        _speed(row.prefill_tokens_per_s),
        _speed(row.decode_tokens_per_s),
        f"{row.decode_ratio.median:.2f}x" if row.decode_ratio else "",
        duration_text(row.load_s) if row.load_s is not None else "",
        size_text(row.peak_bytes) if row.peak_bytes else "",
        f"{row.bandwidth_share:.0%}" if row.bandwidth_share else "",
        f"{row.decode_joules:.2f}" if row.decode_joules is not None else "",
    ]


def _speed(stat: Stat | None) -> str:
    return f"{stat.median:,.1f} ±{50 * stat.spread:.0f}%" if stat else ""


def _notes(result: Result) -> list[str]:
    """Return notes that explain the table, and reasons to doubt it."""
    n_done = max((len(row.samples) for row in result.rows), default=0)
    notes = [output.plain(f"{row.name}: {row.error}") for row in result.rows if row.error]
    if not n_done:
        return notes or ["Stopped before anything was measured."]
    if n_done < result.n_rounds:
        notes.append(f"Stopped after {n_done} of {result.n_rounds} rounds.")
    spread = f"medians of {n_done} rounds, ± half the interquartile range" if n_done > 1 else "one round, so no spread"
    notes.append(f"{result.n_prompt:,} prompt tokens, {result.n_decode:,} generated tokens; {spread}.")
    if any(row.decode_ratio for row in result.rows):
        notes.append(f'"to first": decode speed compared with {output.plain(result.rows[0].name)} in the same round.')
    if result.bandwidth_bytes_per_s:
        notes.append(f"The memory bandwidth is {result.bandwidth_bytes_per_s / 1e9:.1f} GB/s, which limits decode.")
    notes.append(f"Energy: {result.energy}.")
    if (busy := load_of_others()) > BUSY_PROCESSORS:
        notes.append(f"Other programs kept {busy:.1f} processors busy at the end, so these results may be too slow.")
    return notes


def load_of_others() -> float:
    """Return the number of processors that other programs use now."""
    import psutil

    return psutil.cpu_percent(interval=0.3) / 100 * (psutil.cpu_count() or 1)
