"""`edge convert`: fetching adapters, and naming results in the user's catalogue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edge.units import quoted
from edge_cli import output

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from edge_cli.app import App
    from edge_convert.smaller.lora import Adapter

__all__ = ["choose_name", "enter", "fetch_adapter", "say_names"]

_CHANGES = ("lora", "keep_layers", "keep_ffn", "keep_vocab", "recipe", "frontier")  # options after which it is another model


def choose_name(app: App, source: str, options: Mapping[str, Any]) -> str:
    """Return the name of the results in the user's catalogue; "" for none.

    Raises:
        UsageError: --name is not a valid name, or a changed model would get the name of the published one.
    """
    from edge.catalog import check_name, find_entry, load_catalog
    from edge.errors import UsageError

    is_changed = any(options[key] not in (None, False) for key in _CHANGES)
    if options["name"] is not None:
        check_name(options["name"])
        if is_changed and options["name"] in load_catalog():
            raise UsageError(f"{options['name']} is the published model.", "Give the changed one another name.")
        return str(options["name"])
    known = find_entry(source, app.settings())
    return known.name if known is not None and not is_changed else ""


def enter(app: App, name: str, made: Sequence[Path], *, is_asked: bool) -> dict[str, str]:
    """Add results to the user's catalogue, and return the path of each -> format and quantisation.

    Without --name (`is_asked`) only formats that are not published are added: another GGUF would be a faster but worse copy,
    and `edge tune` would choose it.
    """
    from edge.catalog import FORMATS, add_model, is_reference, load_catalog
    from edge.embedding.onnx import is_onnx_folder

    settings = app.settings()
    entry = load_catalog(settings).get(name)
    published = [artifact.form for artifact in entry.artifacts if is_reference(artifact.reference)] if entry else []
    named = {}
    for path in made if name else ():
        form = path.name.partition("-")[0]
        if form == "onnx" and is_onnx_folder(path):
            output.note(f"{path} makes embeddings, so it gets no name. To use it: edge embed -m {quoted(str(path))}")
            continue
        if form in FORMATS and (is_asked or form not in published):
            for artifact in add_model(name, str(path), settings):
                named[str(artifact.path)] = artifact.kind
    return named


def say_names(name: str, named: Mapping[str, str]) -> None:
    """Print the names that were added, and how to run them."""
    for path, kind in named.items():
        form = kind.partition(" ")[0]
        model = quoted(path) if form == "gguf" else f"{quoted(name)} --backend {form}"
        output.note(f"{name} now has {kind}: edge run -m {model}, or let edge tune {quoted(name)} choose.")


def fetch_adapter(app: App, reference: str | None) -> Adapter | None:
    """Return the adapter of --lora, downloaded if it is not here yet."""
    from edge_cli.progress import PullProgress
    from edge_convert.inputs import find_adapter

    if reference is None:
        return None
    with PullProgress() as progress:
        return find_adapter(reference, app.settings(), on_progress=progress.report)
