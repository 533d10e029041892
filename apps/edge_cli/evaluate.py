"""`edge eval`: measure quality, speed and memory of models, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_cli import output
from edge_cli.app import App, pass_app
from edge_cli.completers import complete_backend, complete_local_model, complete_task
from edge_cli.group import examples
from edge_cli.options import json_option

if TYPE_CHECKING:
    from edge_convert.evaluate.card import Card
    from edge_convert.evaluate.tasks.suite import TaskOptions

__all__ = ["evaluate", "print_card"]

_PATH = click.Path(exists=False, path_type=Path)


@click.command(
    name="eval",
    epilog=examples(
        "edge eval model-Q4_0.gguf model-Q4_K_M.gguf --against checkpoint/",
        "edge eval out/model.gguf out/onnx --gate top1=0.9,kl=0.1,ppl=+5%",
        "edge eval *.gguf --html card.html --markdown card.md",
        "edge eval student.gguf --against teacher.gguf --tasks --gate kept=0.8",
        "edge eval smollm2-135m --tasks facts,instructions --minutes 5 --json",
    ),
)
@click.argument("models", nargs=-1, required=True, metavar="MODEL...", shell_complete=complete_local_model)
@click.option(
    "--against", "--teacher", metavar="MODEL", help="The reference [the first checkpoint folder, else the first model]."
)
@click.option("--gate", default="", metavar="LIMITS", help="Fail with exit code 5 beyond these: top1=0.9,kl=0.1,ppl=+5%.")
@click.option("--html", type=_PATH, metavar="FILE", help="Write the card with plots as one HTML file.")
@click.option("--markdown", "markdown_file", type=_PATH, metavar="FILE", help="Write the card as Markdown.")
@click.option("--tokens", type=click.IntRange(min=8), default=1024, show_default=True, help="Tokens of prose to evaluate.")
@click.option("--prompts", type=click.IntRange(0, 12), default=8, show_default=True, help="Chat prompts to answer.")
@click.option("--rounds", type=click.IntRange(min=0), default=3, show_default=True, help="Rounds of speed; 0 skips it.")
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads of one model.  [default: half of them]")
@click.option("--jobs", type=click.IntRange(min=1), metavar="N", help="Models at a time, for quality.")
@click.option(
    "--device",
    "compute_on",
    type=click.Choice(["auto", "cpu", "cuda", "mps"]),
    help="Compute checkpoint folders there.  [default: the GPU that torch finds, else cpu]",
)
@click.option("--ray", default="", metavar="ADDRESS", help="Run on this Ray cluster: HOST:PORT, ray://HOST:PORT or auto.")
@click.option(
    "--tasks",
    is_flag=False,
    flag_value="all",
    metavar="[TASKS]",
    shell_complete=complete_task,
    help="Also ask the models: facts, instructions, repetition; with commas, or all of them.",
)
@click.option("--questions", default="", metavar="SET", help="Questions of --tasks: FILE.jsonl or nq-open  [edge's own]")
@click.option(
    "--minutes",
    type=click.FloatRange(0, min_open=True),
    metavar="N",
    help="Time for --tasks; what is missing then is left out.",
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Prompts of each task at most.")
@click.option("--parallel", type=click.IntRange(1, 16), default=4, show_default=True, help="Replies side by side; 1 is exact.")
@click.option("--backend", default="", metavar="NAME", shell_complete=complete_backend, help="Engine that replies in --tasks.")
@click.option("--fresh", is_flag=True, help="Ask again, instead of going on with stored replies.")
@json_option
@pass_app
def evaluate(
    app: App,
    models: tuple[str, ...],
    against: str | None,
    html: Path | None,
    markdown_file: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure quality, speed and memory of models, side by side.

    A MODEL is a checkpoint folder, a .gguf file, an ONNX folder, an .mlpackage, a folder that `edge convert` made, or the name
    of a model on this device. All get the same text and prompts. Quality is measured in parallel, speed alone and in turns;
    docs/eval.md explains the figures.

    --tasks asks short questions, instructions and for long replies, and says what a model is good for. Replies are stored, so a
    run that was stopped goes on.
    """
    from edge_convert.evaluate.card import markdown, to_json
    from edge_convert.evaluate.evaluation import EvaluateOptions
    from edge_convert.evaluate.evaluation import evaluate as run_evaluation
    from edge_convert.evaluate.gate import enforce
    from edge_convert.evaluate.page import html_page
    from edge_convert.evaluate.passages import TextOptions

    if options["compute_on"]:
        from edge_convert.torch_device import use_device

        use_device(options["compute_on"])
    chosen = EvaluateOptions(
        texts=TextOptions(n_prose=options["tokens"], n_prompts=options["prompts"]),
        n_rounds=options["rounds"],
        n_threads=options["threads"] or 0,
        n_jobs=options["jobs"] or 0,
        gate=options["gate"],
        ray=options["ray"],
        tasks=_tasks(app, options),
    )
    for file in (html, markdown_file):
        _check_place(file)  # so that a mistake is reported before the work, not after
    paths = [_find(app, model) for model in models]
    reference = _find(app, against) if against else None
    with output.Status() as status:
        card = run_evaluation(paths, reference, chosen, status.show_share)
    if as_json:
        output.piece(to_json(card).decode())
    else:
        print_card(card)
    if html:
        output.write_file(html, html_page(card))
    if markdown_file:
        output.write_file(markdown_file, markdown(card))
    enforce(card)


def print_card(card: Card) -> None:
    """Print the card as a table; its notes go to stderr."""
    from edge_convert.evaluate.card import (
        COLUMNS,
        N_QUALITY_COLUMNS,
        USE_COLUMNS,
        has_usefulness,
        notes,
        row_texts,
        use_texts,
    )

    failed = [number for number, row in enumerate(card.rows) if row.failures]
    output.wide_table(COLUMNS, [row_texts(row) for row in card.rows], N_QUALITY_COLUMNS, failed)
    if has_usefulness(card):
        output.wide_table(USE_COLUMNS, [use_texts(row) for row in card.rows], len(USE_COLUMNS), failed)
        for row in card.rows:
            if row.good_for:
                output.line(f"{output.plain(row.name)}: {row.good_for}")
    by_tool: dict[str, list[str]] = {}
    for row in card.rows:
        by_tool.setdefault(row.tool, []).append(row.name)
    for tool, names in by_tool.items():
        output.note(f"Computed by {output.plain(tool)}: {output.plain(', '.join(names))}.")
    for note in notes(card):
        output.note(note)


def _tasks(app: App, options: dict[str, Any]) -> TaskOptions | None:
    """Return what to ask the models, or None."""
    if options["tasks"] is None:
        given = [name for name in ("questions", "minutes", "limit", "backend", "fresh") if options[name]]
        if given:
            raise click.UsageError(f"--{given[0]} needs --tasks.", click.get_current_context())
        return None
    from edge_convert.evaluate.tasks.asks import AnswerOptions
    from edge_convert.evaluate.tasks.suite import TaskOptions, parse_tasks

    answer = AnswerOptions(n_parallel=options["parallel"], n_threads=options["threads"], backend=options["backend"])
    return TaskOptions(
        tasks=parse_tasks(options["tasks"]),
        questions=options["questions"],
        limit=options["limit"] or 0,
        minutes=options["minutes"] or 0.0,
        answer=answer,
        cache_dir=app.settings().paths.cache_dir,
        is_fresh=options["fresh"],
    )


def _find(app: App, model: str) -> Path:
    """Return the path itself, or the path of the model of that name."""
    from edge.catalog import resolve
    from edge.files import exists
    from edge.formats.artifact import given_path
    from edge_convert.evaluate.logits import model_in

    path = given_path(model)
    return model_in(path) if exists(path) else resolve(model, settings=app.settings(), download=False).path


def _check_place(file: Path | None) -> None:
    import os

    from edge.errors import StorageError

    if file is not None and (file.is_dir() or not os.access(file.absolute().parent, os.W_OK)):
        raise StorageError(f"{file} cannot be written.", "Name a file in an existing folder.")
