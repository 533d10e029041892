"""`edge embed`: texts as vectors."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from edge.errors import UsageError
from edge.files import decode_text
from edge_cli import output
from edge_cli.app import App, pass_app
from edge_cli.completers import complete_model, complete_setting
from edge_cli.group import examples
from edge_cli.options import json_option, settings_from
from edge_cli.progress import PullProgress
from edge_cli.prompt import MAX_INPUT_BYTES
from edge_cli.streams import read_stdin

if TYPE_CHECKING:
    from edge.embedding import Embedder

__all__ = ["embed"]

_AT_ONCE = 256  # texts between two writes

EXAMPLES = examples(
    'edge embed "The cat sits on the mat."',
    'edge embed --json "a text" "another text"',
    "edge embed < lines.txt > vectors.jsonl",
    "edge embed --truncate -m all-minilm-l6-v2 - < lines.txt",
    'edge embed -m ./bge-small-onnx "a folder with model.onnx and tokenizer.json"',
)


@click.command(epilog=EXAMPLES)
@click.argument("texts", nargs=-1, metavar="[TEXT]...")
@click.option(
    "-m",
    "--model",
    metavar="MODEL",
    shell_complete=complete_model,
    help="Embedding model: catalogue name, GGUF file, ONNX folder, or reference. Default: all-minilm-l6-v2.",
)
@click.option("--truncate", is_flag=True, help="Cut texts that are longer than the model's window, instead of refusing them.")
@click.option("--dimensions", type=click.IntRange(min=1), metavar="N", help="Shorter vectors, if the model was trained for it.")
@click.option("--threads", metavar="N", help="CPU threads.")
@click.option(
    "-s", "--set", "assignments", metavar="KEY=VALUE", multiple=True, shell_complete=complete_setting, help="Any other setting."
)
@json_option
@pass_app
def embed(
    app: App,
    texts: tuple[str, ...],
    model: str | None,
    truncate: bool,
    dimensions: int | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Turn texts into vectors, for search and comparison.

    Texts that mean the same are near each other. Each TEXT is one text; without any, or with -, each line of stdin that is not
    blank. Writes a JSON object a line, with the number of the text from 0, its tokens, and its vector; --json writes one object
    with all of them.

    The default model is fetched when it is first used (84 MB), reads English, and takes 256 tokens at most.
    """
    given = list(texts) if texts and texts != ("-",) else _lines()
    settings = settings_from(app, options)
    with PullProgress() as progress:
        embedder = app.embedder(model, settings=settings, on_progress=progress.report)
    with embedder:
        rows = _rows(embedder, given, truncate=truncate, dimensions=dimensions)
        if not as_json:
            for row in rows:
                output.json_object(row, compact=True)
            return 0
        listed = list(rows)
        about = {"model": embedder.name, "dimensions": len(listed[0]["embedding"]), "pooling": embedder.info.pooling}
        output.json_object(about | {"embeddings": listed}, compact=True)
    return 0


def _rows(embedder: Embedder, texts: Sequence[str], *, truncate: bool, dimensions: int | None) -> Iterator[dict[str, Any]]:
    """Yield an object for each text, some at a time, so that vectors are written before all texts are done."""
    n_cut = 0
    for first in range(0, len(texts), _AT_ONCE):
        some = texts[first : first + _AT_ONCE]
        for number, one in enumerate(some):
            if not one.strip():
                raise UsageError(f"Text {first + number + 1} is empty.", "Leave out empty texts.")
        found = embedder.embed(some, truncate=truncate, dimensions=dimensions)
        n_cut += len(found.truncated)
        for number, (vector, n_tokens) in enumerate(zip(found.vectors.tolist(), found.n_tokens, strict=True)):
            cut = {"truncated": True} if number in found.truncated else {}
            yield {"index": first + number, "tokens": n_tokens, **cut, "embedding": [round(value, 7) for value in vector]}
    if n_cut:
        output.note(f"{n_cut:,} of {len(texts):,} texts were cut to {embedder.info.n_ctx:,} tokens.")


def _lines() -> list[str]:
    """Return the lines of stdin that are not blank."""
    hint = 'For example: edge embed "a text"   or: edge embed < lines.txt'
    if sys.stdin is None or output.is_terminal(sys.stdin):
        raise UsageError("There is no text to embed: no words were given, and stdin is a terminal.", hint)
    data = read_stdin(MAX_INPUT_BYTES + 1)
    if len(data) > MAX_INPUT_BYTES:
        raise UsageError(f"stdin is larger than {MAX_INPUT_BYTES >> 20} MiB.", "Split it into several runs.")
    lines = [line for line in decode_text(data, "stdin").splitlines() if line.strip()]
    if not lines:
        raise UsageError("There is no text to embed: stdin is empty.", hint)
    return lines
