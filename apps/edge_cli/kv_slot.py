"""`edge kv import-slot`: slot files of llama-server and prompt caches of llama-cli."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from edge.errors import StorageError
from edge.units import size_text
from edge_cli import output
from edge_cli.app import App, pass_app
from edge_cli.group import examples
from edge_cli.options import json_option, model_options, require_input, settings_from

__all__ = ["import_slot"]

_SHOWN_CHARS = 100


@click.command("import-slot", epilog=examples("edge kv import-slot slots/chat.bin -m smollm2-135m"))
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@model_options
@click.option("--namespace", metavar="NAME", default="", help="Namespace of its blocks. Default: one made of its content.")
@json_option
@pass_app
def import_slot(app: App, file: Path, namespace: str, as_json: bool, **options: Any) -> int:
    """Import a slot file of llama-server (--slot-save-path), or a prompt cache of llama-cli, as cached blocks.

    Its structure is checked, and the model computes its first and last tokens to compare them. The numbers in between cannot
    be checked, nor which quantisation or adapter of the model they came from. So the blocks are only used with the setting
    kv.namespace that is printed. Only import files from people you trust.
    """
    settings = settings_from(app, options)
    with (
        output.Status() as status,
        app.load(
            settings=settings, store=None, on_progress=lambda stage, share: status.show(f"{stage} {settings.model}")
        ) as ai,
    ):
        status.show("Comparing it with what the model computes")
        try:
            report = ai.import_slot(file, namespace=namespace)
        except StorageError:
            require_input(file)  # a missing file is wrong usage
            raise
        text = ai.text_of(report.tokens)
    is_whole = report.n_tokens == len(report.tokens)
    if as_json:
        found = dataclasses.asdict(report) | {"tokens": len(report.tokens), "n_tokens": report.n_tokens, "text": text}
        output.json_object(found)
        return 0 if is_whole else 1
    output.line(report.namespace)
    shown = " ".join(text.split())
    output.note(f"It begins: {shown[:_SHOWN_CHARS]}{'...' if len(shown) > _SHOWN_CHARS else ''}")
    output.note(
        f"{report.n_tokens:,} of {len(report.tokens):,} tokens are stored ({size_text(report.size_bytes)}). They differ from "
        f"computed ones by {report.head_error:.1%} at the beginning and {report.tail_error:.1%} at the end."
    )
    if not is_whole:
        output.note(f"The cache did not take all: {report.problem or 'there was no room'}.")
    output.note(f"Use it with: edge run -s kv.namespace={report.namespace} ...")
    return 0 if is_whole else 1
