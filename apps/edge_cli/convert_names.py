"""`edge convert`: where an adapter comes from, and which name of the user's catalogue the results get."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edge_cli import output

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from edge_cli.app import App
    from edge_convert.smaller.lora import Adapter

__all__ = ["choose_name", "enter", "fetch_adapter", "say_names"]

_CHANGES = ("lora", "keep_layers", "recipe")  # options after which it is another model


def choose_name(app: App, source: str, options: Mapping[str, Any]) -> str:
    """What the results are called in the user's catalogue; "" where they get no name.

    Raises:
        UsageError: --name cannot be one, or a changed model would be called as the published one.
    """
    from edge.catalog import check_name, find_entry, load_catalog
    from edge.errors import UsageError

    is_changed = any(options[key] is not None for key in _CHANGES)
    if options["name"] is not None:
        check_name(options["name"])
        if is_changed and options["name"] in load_catalog():
            raise UsageError(f"{options['name']} is the model as its makers publish it.", "Give the changed one another name.")
        return str(options["name"])
    known = find_entry(source, app.settings())
    return known.name if known is not None and not is_changed else ""


def enter(app: App, name: str, made: Sequence[Path], *, is_asked: bool) -> dict[str, str]:
    """Add results to the user's catalogue.

    Unasked only in formats of which there is no published one: one more GGUF would be a worse copy that only is faster, and
    `edge tune` would choose it.

    Args:
        app: what the command got.
        name: of the model; "" adds nothing.
        made: folders that a conversion made.
        is_asked: --name was given.

    Returns:
        Path of each that was added -> format and quantisation.
    """
    from edge.catalog import FORMATS, add_model, is_reference, load_catalog

    settings = app.settings()
    entry = load_catalog(settings).get(name)
    published = [artifact.form for artifact in entry.artifacts if is_reference(artifact.reference)] if entry else []
    named = {}
    for path in made if name else ():
        form = path.name.partition("-")[0]
        if form in FORMATS and (is_asked or form not in published):
            for artifact in add_model(name, str(path), settings):
                named[str(artifact.path)] = artifact.kind
    return named


def say_names(name: str, named: Mapping[str, str]) -> None:
    """Say what the catalogue has now, and how it is run."""
    for path, kind in named.items():
        form = kind.partition(" ")[0]
        model = path if form == "gguf" else f"{name} --backend {form}"
        output.note(f"{name} has {kind} now: edge run -m {model}, or let edge tune {name} choose.")


def fetch_adapter(app: App, reference: str | None) -> Adapter | None:
    """The adapter of --lora, fetched where it is not here yet."""
    from edge_cli.progress import PullProgress
    from edge_convert.inputs import find_adapter

    if reference is None:
        return None
    with PullProgress() as progress:
        return find_adapter(reference, app.settings(), on_progress=progress.report)
