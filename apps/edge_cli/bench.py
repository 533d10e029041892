"""`edge bench`: how fast models run here, side by side."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge.names import ACCELERATORS, KV_TYPES
from edge_cli import output
from edge_cli.app import App, pass_app
from edge_cli.completers import complete_model
from edge_cli.group import CONTEXT_SETTINGS, examples
from edge_cli.options import json_option

if TYPE_CHECKING:
    from edge.bench.values import Result, Row, Stat
    from edge.config import Settings
    from edge.formats.artifact import Artifact

__all__ = ["bench", "complete_backend", "find_models"]

_BUSY_SHARE = 0.5
_COLUMNS = ("", "first token", "prefill t/s", "decode t/s", "to first", "load", "memory", "of bandwidth", "J/token")
_N_SPEED_COLUMNS = 5


def complete_backend(ctx: click.Context, param: object, incomplete: str) -> list[str]:
    """Engines that the plan knows."""
    from edge.registry import ENGINES

    return [row.name for row in ENGINES.values() if row.is_automatic and row.name.startswith(incomplete)]


@click.command(
    context_settings=CONTEXT_SETTINGS,
    epilog=examples(
        "edge bench",
        "edge bench smollm2-135m smollm2-converted/onnx-int4",
        "edge bench Q4_0.gguf Q4_K_M.gguf --threads 2 --threads 4 --reps 9",
        "edge bench smollm2-135m --kv-type f16 --kv-type q8_0 --plot bench.svg",
        "edge bench smollm2-135m --json | jq .rows[0].decode_tokens_per_s.median",
    ),
)
@click.argument("models", nargs=-1, metavar="[MODEL]...", shell_complete=complete_model)
@click.option(
    "--backend", "backends", metavar="NAME", multiple=True, shell_complete=complete_backend, help="Engine; may be repeated."
)
@click.option(
    "--require",
    "accelerators",
    type=click.Choice(ACCELERATORS),
    multiple=True,
    help="Accelerator; may be repeated.",
)
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
    "--prompt", type=click.IntRange(1, 131072), default=512, show_default=True, metavar="TOKENS", help="Tokens to read."
)
@click.option(
    "--decode", type=click.IntRange(1, 131072), default=128, show_default=True, metavar="TOKENS", help="Tokens to write."
)
@click.option(
    "--reps", type=click.IntRange(1, 1000), default=5, show_default=True, metavar="N", help="Rounds over all candidates."
)
@click.option("--untuned", is_flag=True, help="Leave out what edge tune measured.")
@click.option(
    "--plot", "plot_file", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Write a picture (SVG)."
)
@json_option
@pass_app
def bench(app: App, models: tuple[str, ...], **options: Any) -> int:
    """Measure how fast models run here, side by side.

    Without a MODEL it is the one you chat with. Every model is run in every format that is here, by every engine that reads it,
    or by those named with --backend; options that are repeated are all tried. Candidates take turns, each in a process of its
    own: medians, with the spread of the middle half of the rounds. Ctrl-C shows what was measured so far.
    """
    from edge.bench.candidates import Grid, find_candidates
    from edge.bench.run import Options, run_bench

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
        device, artifacts, grid, n_tokens=n_tokens, cache_dir=settings.paths.cache_dir, on_left_out=_say_left_out
    )
    chosen = Options(n_prompt=options["prompt"], n_decode=options["decode"], n_rounds=options["reps"])
    with output.Status() as status:
        result = run_bench(
            candidates, chosen, device, on_progress=lambda text, done: status.show(f"{100 * done:3.0f}%  {text}")
        )
    _show(result, as_json=options["as_json"])
    if options["plot_file"] is not None:  # last: where it cannot be written, what was measured is told all the same
        _write_plot(options["plot_file"], result)
    if not result.is_complete and not any(row.error for row in result.rows):
        return 130  # Ctrl-C
    return 1 if any(row.error for row in result.rows) else 0


def _say_left_out(artifact: Artifact, why: str) -> None:
    output.note(output.plain(f"Left out: {artifact.format}. {why}"))


def find_models(app: App, settings: Settings, names: tuple[str, ...], backends: tuple[str, ...] = ()) -> list[Artifact]:
    """The models of names, paths and references, fetched where they are not here; the chosen one where there is no name.

    Of a name or a folder that has a model in several formats it is all of them that are here and can be run.

    Args:
        app: what the command got.
        settings: merged.
        names: the models.
        backends: engines; () is every one.

    Raises:
        ModelNotFoundError, DownloadError, ModelFileError: one cannot be had or used.
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
            # A folder gives what it holds; what no engine here reads is left out, unless there is nothing else.
            able = [artifact for artifact in artifacts if artifact.format in formats] or artifacts
            found.update({artifact.path: artifact for artifact in able})
    return list(found.values())


def _show(result: Result, *, as_json: bool) -> None:
    import msgspec

    if as_json:
        output.json_object(msgspec.to_builtins(result))
    else:
        rows = [_cells(row) for row in result.rows]
        used = [index for index in range(len(_COLUMNS)) if index == 0 or any(row[index] for row in rows)]
        if output.is_terminal(sys.stdout):
            output.piece(_rich_table(rows, used))
        else:
            output.table([[row[index] or "-" for index in used] for row in rows])
    for note in _notes(result):
        output.note(note)


def _cells(row: Row) -> list[str]:
    from edge.units import size_text

    return [
        row.name,
        f"{1000 * row.first_token_s.median:,.0f} ms" if row.first_token_s else "",
        _speed(row.prefill_tokens_per_s),
        _speed(row.decode_tokens_per_s),
        f"{row.decode_ratio.median:.2f}x" if row.decode_ratio else "",
        f"{row.load_s:.2f} s" if row.load_s is not None else "",
        size_text(row.peak_bytes) if row.peak_bytes else "",
        f"{row.bandwidth_share:.0%}" if row.bandwidth_share else "",
        f"{row.decode_joules:.2f}" if row.decode_joules is not None else "",
    ]


def _speed(stat: Stat | None) -> str:
    return f"{stat.median:,.1f} ±{50 * stat.spread:.0f}%" if stat else ""


def _rich_table(rows: list[list[str]], used: list[int]) -> str:
    """One table; two, speed and cost, where the terminal is too narrow for one."""
    import io

    from rich.console import Console

    shown = io.StringIO()
    is_plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
    console = Console(file=shown, force_terminal=True, no_color=is_plain)
    whole = _columns(rows, used)
    if console.measure(whole, options=console.options.update(width=500)).maximum <= console.width:
        console.print(whole)
    else:
        console.print(_columns(rows, [index for index in used if index < _N_SPEED_COLUMNS]))
        console.print()
        console.print(_columns(rows, [0, *(index for index in used if index >= _N_SPEED_COLUMNS)]))
    return shown.getvalue()


def _columns(rows: list[list[str]], used: list[int]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    for index in used:
        width = max(len(text) for text in (_COLUMNS[index], *(row[index] for row in rows)))
        is_name = index == 0  # names give way where it gets narrow, numbers do not
        table.add_column(
            _COLUMNS[index], justify="left" if is_name else "right", overflow="fold", min_width=10 if is_name else width
        )
    for row in rows:
        table.add_row(*(Text(output.plain(row[index])) for index in used))
    return table


def _notes(result: Result) -> list[str]:
    """What explains the table, and what makes it doubtful."""
    n_done = max((len(row.samples) for row in result.rows), default=0)
    notes = [output.plain(f"{row.name}: {row.error}") for row in result.rows if row.error]
    if not n_done:
        return notes or ["Stopped before anything was measured."]
    if n_done < result.n_rounds:
        notes.append(f"Stopped after {n_done} of {result.n_rounds} rounds.")
    spread = f"medians of {n_done} rounds, ± half the distance of the quartiles" if n_done > 1 else "one round, so no spread"
    notes.append(f"{result.n_prompt:,} tokens read, {result.n_decode:,} written after them; {spread}.")
    if any(row.decode_ratio for row in result.rows):
        notes.append(f'"to first": decode speed compared with {output.plain(result.rows[0].name)} in the same round.')
    if result.bandwidth_bytes_per_s:
        notes.append(f"Memory can be read at {result.bandwidth_bytes_per_s / 1e9:.1f} GB/s here, which bounds decode.")
    notes.append(f"Energy: {result.energy}.")
    if (busy := _load_of_others()) > _BUSY_SHARE:
        notes.append(
            f"Other programs kept {busy:.1f} processors busy when this ended: all of it may be slower than it could be."
        )
    return notes


def _load_of_others() -> float:
    """Processors that other programs use right now."""
    import psutil

    return psutil.cpu_percent(interval=0.3) / 100 * (psutil.cpu_count() or 1)


def _write_plot(path: Path, result: Result) -> None:
    from edge.bench.plot import plot
    from edge.errors import StorageError

    try:
        path.write_text(plot(result), encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror}.", "Choose another place.") from error
