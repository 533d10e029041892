"""`edge models`: list, download, show, name and remove models."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edge.names import FORMATS, Format
from edge.units import quoted, size_text
from edge_cli import models_voice, output, signals
from edge_cli.app import App, pass_app
from edge_cli.completers import complete_downloadable, complete_removable
from edge_cli.group import SuggestingGroup, examples
from edge_cli.options import json_option
from edge_cli.recommend import recommend

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edge.catalog import ArtifactEntry, CatalogEntry, Installed
    from edge.config import Settings
    from edge.sources.base import Found

__all__ = ["models"]

Command = TypeVar("Command", bound="Callable[..., Any]")


def _format_option(help_text: str) -> Callable[[Command], Command]:
    return click.option("--format", "form", type=click.Choice(FORMATS), help=help_text)


@click.group(cls=SuggestingGroup)
def models() -> None:
    """List, download, show, name and remove models.

    A model is a catalogue name, a path, hf:OWNER/REPO[:FILE, quantisation or folder], ollama:NAME or pypi:PACKAGE. One name can
    have a model in several formats; edge uses the best one for this device.
    """


models.add_command(recommend)


@models.command(epilog=examples("edge models ls", "edge models ls --here --json | jq -r '.[].path'"))
@click.option("--here", "is_here_only", is_flag=True, help="Only models on this device.")
@json_option
@pass_app
def ls(app: App, is_here_only: bool, as_json: bool) -> None:
    """List the models on this device and those of the catalogue, one line for each format.

    "~" before a size means as published when this edge was made. The memory column says whether a model fits into the memory
    that is free now: "tight" with a shorter context than usual, "too large" not at all.
    """
    from edge.catalog import list_for_converters, list_models, list_voice, load_catalog
    from edge.plan.verdict import free_memory
    from edge_cli import models_listing as listing

    settings = app.settings()
    installed, sources, voice = list_models(settings), list_for_converters(settings), list_voice(settings)
    rest = [] if is_here_only else listing.missing_from(installed, voice, load_catalog(settings))
    if as_json:
        output.json_object(
            [listing.installed_json(model) for model in installed]
            + [listing.source_json(*pair) for pair in sources]
            + [models_voice.voice_json(entry, found, entry.name) for entry, found in voice]
            + [listing.entry_json(*pair) for pair in rest]
        )
        return
    rows = listing.list_rows(installed, sources, voice, rest, load_catalog(settings), free_memory(app.probe()))
    if not rows:
        output.note("There is no model on this device. Download one with: edge models pull smollm2-135m")
    listing.print_rows(rows)
    if rows and output.is_terminal(sys.stdout):
        _note_sizes([*installed, *(found for _, found in voice)], rest)


@models.command(
    epilog=examples(
        "edge models pull smollm2-135m",
        "edge models pull phi3-mini --format onnx",
        "edge models pull hf:Qwen/Qwen2.5-0.5B-Instruct-GGUF:Q4_K_M",
        "edge models pull gemma3-1b --accept-licence",
        "edge models pull voice",
    )
)
@click.argument("model", required=False, shell_complete=complete_downloadable)
@_format_option("Download this format [the best that can be run here].")
@click.option("--accept-licence", is_flag=True, help="Agree to the licence, where the model requires it.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
@json_option
@pass_app
def pull(app: App, model: str | None, form: Format | None, accept_licence: bool, quiet: bool, as_json: bool) -> int:
    """Download a model in its newest version and print its path; without a name, the default model.

    "voice" downloads the models of a voice conversation. An interrupted download resumes where it stopped.
    """
    from edge.catalog import pull as pull_model
    from edge_cli.models_listing import artifact_json
    from edge_cli.progress import PullProgress

    settings = app.settings()
    if voice := models_voice.expand_voice(model or settings.model, settings):
        _refuse_format(form, voice[0])
        return models_voice.pull(voice, settings, accept_licence=accept_licence, is_quiet=quiet, as_json=as_json)
    formats = (form,) if form else _formats_here(app, settings)
    try:
        with PullProgress(is_silent=quiet) as progress:
            artifact = pull_model(
                model or settings.model,
                settings=settings,
                on_progress=progress.report,
                accept_licence=accept_licence,
                formats=formats,
            )
    except KeyboardInterrupt:
        output.note("Interrupted. The part that has arrived is kept: run the same command again to resume.")
        return signals.exit_code()
    if as_json:
        output.json_object(artifact_json(artifact))
    elif not quiet:
        output.note(f"{artifact.name}: {size_text(artifact.size_bytes)}, licence {artifact.licence or 'unknown'}")
        output.line(str(artifact.path))
    return 0


@models.command(
    epilog=examples(
        "edge models show smollm2-135m",
        "edge models show smollm2-135m --path",
        "edge models show --verify ~/models/other.gguf",
    )
)
@click.argument("model", shell_complete=complete_downloadable)
@_format_option("Show this format [the best that is here].")
@click.option("--path", "is_path_only", is_flag=True, help="Print only the path of its file or folder.")
@click.option("--verify", "is_verified", is_flag=True, help="Read its files and check their SHA-256.")
@json_option
@pass_app
def show(app: App, model: str, form: Format | None, is_path_only: bool, is_verified: bool, as_json: bool) -> None:
    """Show a model: its licence, size, architecture and formats."""
    from edge.catalog import find_entry, list_models, resolve, verify
    from edge.errors import ModelNotFoundError
    from edge_cli import models_listing as listing
    from edge_cli.progress import PullProgress

    settings = app.settings()
    if voice := models_voice.expand_voice(model, settings):
        _refuse_format(form, voice[0])
        models_voice.show(voice, settings, is_path_only=is_path_only, is_verified=is_verified, as_json=as_json)
        return
    entry = find_entry(model, settings)
    # Formats that can only be run elsewhere can be shown too.
    formats = (form,) if form else tuple(dict.fromkeys([*_formats_here(app, settings), *FORMATS]))
    installed = list_models(settings) if entry else []
    try:
        artifact = resolve(model, settings=settings, download=False, formats=formats)
    except ModelNotFoundError:
        if entry is None or is_path_only or is_verified or form:
            raise
        if as_json:
            about = {**listing.entry_json(entry, entry.artifacts[0]), "artifacts": listing.formats_json(entry, installed)}
            output.json_object(about)
        else:
            output.table(listing.entry_rows(entry))
            _show_formats(entry, installed)
        return
    digest = artifact.sha256
    if is_verified:
        with PullProgress(is_silent=not output.is_terminal(sys.stderr)) as progress:
            digest = verify(model, settings=settings, on_progress=progress.report, formats=formats)
    if is_path_only:
        output.line(str(artifact.path))
    elif as_json:
        about = {"description": entry.description, "licence_url": entry.licence_url} if entry else {}
        about |= {"artifacts": listing.formats_json(entry, installed)} if entry else {}
        output.json_object({**listing.artifact_json(artifact), **about, "sha256": digest})
    else:
        rows = [("title", entry.title), ("good for", entry.description)] if entry else []
        checked = f"{digest} (just checked)" if is_verified else digest or ""
        output.table([row for row in (*rows, *listing.artifact_rows(artifact, entry, checked)) if row[1]])
        if entry:
            _show_formats(entry, installed)


@models.command(epilog=examples("edge models add my-phi ~/models/phi-onnx", "edge models add smollm2-135m ./smollm2/onnx-int4"))
@click.argument("name")
@click.argument("where", metavar="PATH|REFERENCE")
@pass_app
def add(app: App, name: str, where: str) -> int:
    """Give a model a name of your own, or add a format to a name.

    Files stay where they are. The name is written to your own catalogue, which you can also edit.
    """
    from edge.catalog import add_model

    settings = app.settings()
    added = add_model(name, where, settings)
    for artifact in added:
        output.note(f"{name}: {artifact.kind}, {size_text(artifact.size_bytes)}, at {artifact.path}")
    if not added:
        output.note(f"{name} is now {where}. Download it with: edge models pull {quoted(name)}")
    output.note(f"Written to {settings.paths.catalog_file}")
    return 0


@models.command(epilog=examples("edge models rm qwen2.5-0.5b", "edge models rm phi3-mini --format onnx"))
@click.argument("names", nargs=-1, required=True, shell_complete=complete_removable, metavar="MODEL...")
@_format_option("Remove only this format [all].")
@json_option
@pass_app
def rm(app: App, names: tuple[str, ...], form: Format | None, as_json: bool) -> int:
    """Remove models that edge downloaded. Files of Ollama, of pip and your own are never touched.

    A model of your own catalogue that is in a file or folder of yours is only removed from the catalogue. If one model cannot
    be removed, the others still are; the exit code is that of the first failure.
    """
    from edge.catalog import find_bundle, remove
    from edge.errors import EdgeError

    settings = app.settings()
    results: list[dict[str, Any]] = []
    exit_codes: list[int] = []
    for name in dict.fromkeys(one for given in names for one in find_bundle(given, settings) or (given,)):
        try:
            removed = remove(name, settings, formats=(form,) if form else FORMATS)
        except EdgeError as error:
            exit_codes.append(error.exit_code)
            output.error(error.message, error.hint)
            results.append({"name": name, "is_removed": False, "error": error.message, "hint": error.hint})
            continue
        result = {"name": name, "is_removed": True, "paths": [str(path) for path in removed.paths]}
        result |= {"freed_bytes": removed.freed_bytes, "forgotten": [str(path) for path in removed.forgotten]}
        results.append(result)
        if not as_json and removed.paths:
            output.note(f"{name} is removed, {size_text(removed.freed_bytes)} freed.")
        if not as_json and not removed.paths:
            output.note(f"{name} is removed from your catalogue.")
        for path in () if as_json else removed.forgotten:
            output.note(f"{path} is your file and was not deleted.")
    if as_json:
        output.json_object(results)
    return exit_codes[0] if exit_codes else 0


def _formats_here(app: App, settings: Settings) -> tuple[Format, ...]:
    """Return the formats that can be run on this device, best first."""
    from edge.plan import PlanRequest
    from edge.plan.choosing import rank_formats

    return rank_formats(app.probe(), PlanRequest(backend=settings.backend, require=settings.require))


def _refuse_format(form: Format | None, name: str) -> None:
    if form is not None:
        from edge.errors import UsageError

        raise UsageError(f"{name} is for voice, and comes in one form only.", "Leave out --format.")


def _show_formats(entry: CatalogEntry, installed: Sequence[Installed]) -> None:
    from edge_cli.models_listing import format_rows

    if len(entry.artifacts) > 1:
        output.line()
        output.table(format_rows(entry, installed), ("format", "size", "where"))


def _note_sizes(installed: Sequence[Installed | Found], rest: Sequence[tuple[CatalogEntry, ArtifactEntry]]) -> None:
    """Print the total size of the models here, and the meaning of an unknown size."""
    from edge_cli.models_listing import FROM_HUB, UNKNOWN

    if installed:
        models = "1 model" if len(installed) == 1 else f"{len(installed)} models"
        output.note(f"\n{models} on this device, {size_text(sum(model.size_bytes for model in installed))} in all.")
    if any(artifact.size_bytes is None for _, artifact in rest):
        output.note(f"{UNKNOWN}: known {FROM_HUB}.")
