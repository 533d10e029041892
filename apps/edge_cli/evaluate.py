"""`edge eval`: measures models side by side."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_cli import output
from edge_cli.app import App, pass_app
from edge_cli.completers import complete_local_model
from edge_cli.group import CONTEXT_SETTINGS, examples
from edge_cli.options import json_option

if TYPE_CHECKING:
    from edge_convert.evaluate.card import Card

__all__ = ["evaluate", "print_card"]

_PATH = click.Path(exists=False, path_type=Path)


@click.command(
    name="eval",
    context_settings=CONTEXT_SETTINGS,
    epilog=examples(
        "edge eval model-Q4_0.gguf model-Q4_K_M.gguf --against checkpoint/",
        "edge eval out/model.gguf out/onnx --gate top1=0.9,kl=0.1,ppl=+5%",
        "edge eval *.gguf --html card.html --markdown card.md",
    ),
)
@click.argument("models", nargs=-1, required=True, metavar="MODEL...", shell_complete=complete_local_model)
@click.option(
    "--against",
    metavar="MODEL",
    help="The reference; otherwise the first checkpoint folder named, else the first model.",
)
@click.option("--gate", default="", metavar="LIMITS", help="Fail with exit code 5 beyond these: top1=0.9,kl=0.1,ppl=+5%.")
@click.option("--html", type=_PATH, metavar="FILE", help="Write the card with plots as one HTML file.")
@click.option("--markdown", "markdown_file", type=_PATH, metavar="FILE", help="Write the card as Markdown.")
@click.option("--tokens", type=click.IntRange(min=8), default=1024, show_default=True, help="Tokens of prose to read.")
@click.option("--prompts", type=click.IntRange(0, 12), default=8, show_default=True, help="Chat prompts to answer.")
@click.option(
    "--rounds", type=click.IntRange(min=0), default=3, show_default=True, help="Rounds that measure speed; 0 skips it."
)
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads of one model.  [default: half of them]")
@click.option("--jobs", type=click.IntRange(min=1), metavar="N", help="Models at a time, for quality.")
@click.option("--ray", default="", metavar="ADDRESS", help="Run on this Ray cluster: HOST:PORT, ray://HOST:PORT or auto.")
@json_option
@pass_app
def evaluate(
    app: App,
    models: tuple[str, ...],
    against: str | None,
    gate: str,
    html: Path | None,
    markdown_file: Path | None,
    tokens: int,
    prompts: int,
    rounds: int,
    threads: int | None,
    jobs: int | None,
    ray: str,
    as_json: bool,
) -> None:
    """Measure models side by side: quality, speed and memory.

    A MODEL is a checkpoint folder, a .gguf file, an ONNX folder, an .mlpackage, a folder that `edge convert` made, or the name
    of a model on this device. All read the same text and answer the same prompts. Quality is measured side by side, speed alone
    and in turns; see docs/eval.md for what the numbers mean.
    """
    from edge_convert.evaluate.card import markdown, to_json
    from edge_convert.evaluate.evaluation import EvaluateOptions
    from edge_convert.evaluate.evaluation import evaluate as run_evaluation
    from edge_convert.evaluate.gate import enforce
    from edge_convert.evaluate.page import html_page
    from edge_convert.evaluate.passages import TextOptions

    options = EvaluateOptions(
        texts=TextOptions(n_prose=tokens, n_prompts=prompts),
        n_rounds=rounds,
        n_threads=threads or 0,
        n_jobs=jobs or 0,
        gate=gate,
        ray=ray,
    )
    for file in (html, markdown_file):
        _check_place(file)  # said before the work, not after it
    paths = [_find(app, model) for model in models]
    reference = _find(app, against) if against else None
    with output.Status() as status:
        card = run_evaluation(paths, reference, options, lambda text, done: status.show(f"{100 * done:3.0f}%  {text}"))
    if as_json:
        output.piece(to_json(card).decode())
    else:
        print_card(card)
    if html:
        _write(html, html_page(card))
    if markdown_file:
        _write(markdown_file, markdown(card))
    enforce(card)


def print_card(card: Card) -> None:
    """The card as a table on a terminal, as plain columns in a pipe; what explains it goes to stderr."""
    from edge_convert.evaluate.card import notes, row_texts, used_columns

    used = used_columns(card)
    if output.is_terminal(sys.stdout):
        output.piece(_rich_table(card, used))
    else:
        output.table([tuple(row_texts(row)[index] or "-" for index in used) for row in card.rows])
    by_tool: dict[str, list[str]] = {}
    for row in card.rows:
        by_tool.setdefault(row.tool, []).append(row.name)
    for tool, names in by_tool.items():
        output.note(f"Computed by {output.plain(tool)}: {output.plain(', '.join(names))}.")
    for note in notes(card):
        output.note(note)


def _rich_table(card: Card, used: list[int]) -> str:
    """The card as a table; as two, quality and speed, where the terminal is too narrow for one."""
    import io
    import os

    from rich.console import Console

    from edge_convert.evaluate.card import N_QUALITY_COLUMNS

    shown = io.StringIO()
    is_plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
    console = Console(file=shown, force_terminal=True, no_color=is_plain)
    speed = [index for index in used if index >= N_QUALITY_COLUMNS]
    if console.measure(_columns(card, used), options=console.options.update(width=500)).maximum <= console.width or not speed:
        console.print(_columns(card, used))
    else:
        console.print(_columns(card, [index for index in used if index < N_QUALITY_COLUMNS]))
        console.print()
        console.print(_columns(card, [0, *speed]))
    return shown.getvalue()


def _columns(card: Card, used: list[int]) -> Any:
    from rich.table import Table
    from rich.text import Text

    from edge_convert.evaluate.card import COLUMNS, row_texts

    table = Table(box=None, header_style="bold", pad_edge=False)
    for index in used:
        width = max(len(heading) for heading in (COLUMNS[index], *(row_texts(row)[index] for row in card.rows)))
        is_name = index == 0  # names give way where it gets narrow, numbers do not
        table.add_column(
            COLUMNS[index], justify="left" if is_name else "right", overflow="fold", min_width=10 if is_name else width
        )
    for row in card.rows:
        texts = [Text(output.plain(row_texts(row)[index])) for index in used]
        table.add_row(*texts, style="red" if row.failures else None)
    return table


def _find(app: App, model: str) -> Path:
    """The path itself, or where the model of that name is on this device."""
    from edge.catalog import resolve
    from edge.formats.artifact import given_path
    from edge_convert.evaluate.logits import model_in

    path = given_path(model)
    return model_in(path) if path.exists() else resolve(model, settings=app.settings(), download=False).path


def _check_place(file: Path | None) -> None:
    import os

    from edge.errors import StorageError

    if file is not None and (file.is_dir() or not os.access(file.absolute().parent, os.W_OK)):
        raise StorageError(f"{file} cannot be written.", "Name a file in a folder that is there.")


def _write(path: Path, text: str) -> None:
    from edge.errors import StorageError

    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error}.", "Choose another place.") from error
