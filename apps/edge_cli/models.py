"""`edge models`: list, fetch, show and remove models."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from edge_cli import output
from edge_cli.app import App, pass_app
from edge_cli.completers import complete_local_model, complete_model
from edge_cli.group import CONTEXT_SETTINGS, SuggestingGroup, examples
from edge_cli.options import json_option
from edge_cli.text import size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge.artifact import Artifact
    from edge.catalog import CatalogEntry, Installed

__all__ = ["models"]

_UNKNOWN = "-"
_TOLD_BY_HUB = "from the hub's listing at download"


@click.group(cls=SuggestingGroup, context_settings=CONTEXT_SETTINGS)
def models() -> None:
    """List, fetch, show and remove models.

    A model is a catalogue name, the path of a model, hf:OWNER/REPO[:FILE or quantisation], ollama:NAME or pypi:PACKAGE.
    """


@models.command(
    context_settings=CONTEXT_SETTINGS, epilog=examples("edge models ls", "edge models ls --here --json | jq -r '.[].path'")
)
@click.option("--here", "is_here_only", is_flag=True, help="Only what is on this device.")
@json_option
@pass_app
def ls(app: App, is_here_only: bool, as_json: bool) -> None:
    """Models on this device, and those of the catalogue that can be fetched."""
    from edge.catalog import list_models, load_catalog

    installed = list_models(app.settings())
    known = {name for model in installed for name in model.used_by}
    rest = [] if is_here_only else [entry for name, entry in load_catalog().items() if name not in known]
    if as_json:
        here: list[dict[str, Any]] = [
            {
                "name": model.name,
                "is_here": True,
                "reference": model.reference,
                "path": str(model.path),
                "size_bytes": model.size_bytes,
                "sha256": model.sha256,
                "licence": model.licence,
                "origin": model.origin,
                "owner": model.owner,
                "used_by": list(model.used_by),
            }
            for model in installed
        ]
        output.json_object(here + [_entry_json(entry) for entry in rest])
        return
    rows = [
        (
            model.name + (" (default)" if "default" in model.used_by else ""),
            size(model.size_bytes),
            model.licence or "",
            f"here, from {model.origin}",
        )
        for model in installed
    ]
    rows += [(entry.name, _entry_size(entry, _UNKNOWN), entry.licence, f"edge models pull {entry.name}") for entry in rest]
    if not rows:
        output.note("There is no model on this device. Fetch one with: edge models pull smollm2-135m")
    output.table(rows, ("model", "size", "licence", "where"))
    if rows and output.is_terminal(sys.stdout):
        _say_sizes(installed, rest)


@models.command(
    context_settings=CONTEXT_SETTINGS,
    epilog=examples(
        "edge models pull smollm2-135m",
        "edge models pull hf:Qwen/Qwen2.5-0.5B-Instruct-GGUF:Q4_K_M",
        "edge models pull gemma3-1b --accept-licence",
    ),
)
@click.argument("model", required=False, shell_complete=complete_model)
@click.option("--accept-licence", is_flag=True, help="Agree to the licence, where the model's makers ask for that.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
@json_option
@pass_app
def pull(app: App, model: str | None, accept_licence: bool, quiet: bool, as_json: bool) -> int:
    """Fetch a model, or what is newest of it; without a name, the default model. Prints its path.

    A download that was interrupted goes on where it stopped.
    """
    from edge.catalog import pull as pull_model
    from edge_cli.progress import PullProgress

    settings = app.settings()
    try:
        with PullProgress(is_silent=quiet) as progress:
            artifact = pull_model(
                model or settings.model, settings=settings, on_progress=progress.report, accept_licence=accept_licence
            )
    except KeyboardInterrupt:
        output.note("Interrupted. What has arrived is kept: run the same command again to resume.")
        return 130
    if as_json:
        output.json_object(_artifact_json(artifact))
    elif not quiet:
        output.note(f"{artifact.name}: {size(artifact.size_bytes)}, licence {artifact.licence or 'unknown'}")
        output.line(str(artifact.path))
    return 0


@models.command(
    context_settings=CONTEXT_SETTINGS,
    epilog=examples(
        "edge models show smollm2-135m",
        "edge models show smollm2-135m --path",
        "edge models show --verify ~/models/other.gguf",
    ),
)
@click.argument("model", shell_complete=complete_model)
@click.option("--path", "is_path_only", is_flag=True, help="Print only where its file is.")
@click.option("--verify", "is_verified", is_flag=True, help="Read the file through and check its SHA-256.")
@json_option
@pass_app
def show(app: App, model: str, is_path_only: bool, is_verified: bool, as_json: bool) -> None:
    """What a model is: its licence, its size, and what its file says."""
    from edge.catalog import load_catalog, resolve, verify
    from edge.errors import ModelNotFoundError
    from edge_cli.progress import PullProgress

    settings = app.settings()
    entry = load_catalog().get(model)
    try:
        artifact = resolve(model, settings=settings, download=False)
    except ModelNotFoundError:
        if entry is None or is_path_only or is_verified:
            raise
        if as_json:
            output.json_object(_entry_json(entry))
        else:
            output.table(_entry_rows(entry))
        return
    digest = artifact.sha256
    if is_verified:
        with PullProgress(is_silent=not output.is_terminal(sys.stderr)) as progress:
            digest = verify(model, settings=settings, on_progress=progress.report)
    if is_path_only:
        output.line(str(artifact.path))
    elif as_json:
        about = {"description": entry.description, "licence_url": entry.licence_url} if entry else {}
        output.json_object({**_artifact_json(artifact), **about, "sha256": digest})
    else:
        rows = [("title", entry.title), ("good for", entry.description)] if entry else []
        checked = f"{digest} (just checked)" if is_verified else digest or ""
        output.table([*rows, *_artifact_rows(artifact, entry, checked)])


@models.command(context_settings=CONTEXT_SETTINGS, epilog=examples("edge models rm qwen2.5-0.5b"))
@click.argument("names", nargs=-1, required=True, shell_complete=complete_local_model, metavar="MODEL...")
@json_option
@pass_app
def rm(app: App, names: tuple[str, ...], as_json: bool) -> int:
    """Remove models that edge fetched. Files of Ollama, of pip and your own are never touched.

    One that cannot be removed does not keep the others; the exit code is that of the first that failed.
    """
    from edge.catalog import remove
    from edge.errors import EdgeError

    settings = app.settings()
    results: list[dict[str, Any]] = []
    exit_codes: list[int] = []
    for name in dict.fromkeys(names):
        try:
            removed = remove(name, settings)
        except EdgeError as error:
            exit_codes.append(error.exit_code)
            output.error(error.message, error.hint)
            results.append({"name": name, "is_removed": False, "error": error.message, "hint": error.hint})
            continue
        paths = [str(path) for path in removed.paths]
        results.append({"name": name, "is_removed": True, "paths": paths, "freed_bytes": removed.freed_bytes})
        if not as_json:
            output.note(f"{name} is removed, {size(removed.freed_bytes)} are free again.")
    if as_json:
        output.json_object(results)
    return exit_codes[0] if exit_codes else 0


def _say_sizes(installed: Sequence[Installed], rest: Sequence[CatalogEntry]) -> None:
    """What the models here take together, and what a missing size means."""
    if installed:
        models = "1 model" if len(installed) == 1 else f"{len(installed)} models"
        output.note(f"\n{models} on this device, {size(sum(model.size_bytes for model in installed))} in all.")
    if any(entry.artifacts[0].size_bytes is None for entry in rest):
        output.note(f"{_UNKNOWN}: known {_TOLD_BY_HUB}.")


def _entry_json(entry: CatalogEntry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "is_here": False,
        "title": entry.title,
        "description": entry.description,
        "licence": entry.licence,
        "licence_url": entry.licence_url,
        "must_accept_licence": entry.accept_licence,
        "parameters": entry.parameters,
        "context": entry.context,
        "references": [artifact.reference for artifact in entry.artifacts],
        "size_bytes": entry.artifacts[0].size_bytes,
        "sha256": entry.artifacts[0].sha256,
    }


def _entry_rows(entry: CatalogEntry) -> list[tuple[str, str]]:
    rows = [
        ("model", f"{entry.name} (not on this device)"),
        ("title", entry.title),
        ("good for", entry.description),
        ("licence", f"{entry.licence}, {entry.licence_url}" + (" (has to be accepted)" if entry.accept_licence else "")),
        ("size", _entry_size(entry, _TOLD_BY_HUB)),
        ("sha256", entry.artifacts[0].sha256 or _TOLD_BY_HUB),
        ("parameters", f"{entry.parameters:,}" if entry.parameters else ""),
        ("context", f"{entry.context:,} tokens" if entry.context else ""),
        ("comes from", ", ".join(artifact.reference for artifact in entry.artifacts)),
        ("fetch it with", f"edge models pull {entry.name}" + (" --accept-licence" if entry.accept_licence else "")),
    ]
    return [row for row in rows if row[1]]


def _entry_size(entry: CatalogEntry, unknown: str) -> str:
    known = entry.artifacts[0].size_bytes
    return size(known) if known else unknown


def _artifact_json(artifact: Artifact) -> dict[str, Any]:
    result: dict[str, Any] = {
        "name": artifact.name,
        "is_here": True,
        "source": artifact.source,
        "format": artifact.format,
        "path": str(artifact.path),
        "size_bytes": artifact.size_bytes,
        "sha256": artifact.sha256,
        "licence": artifact.licence,
    }
    if artifact.header is not None:
        names = (
            "architecture",
            "file_type",
            "n_params",
            "n_layer",
            "n_embd",
            "n_head",
            "n_head_kv",
            "n_ctx_train",
            "n_vocab",
            "sliding_window",
            "tensors_bytes",
            "is_recurrent",
            "is_hybrid",
        )
        result |= {name: getattr(artifact.header, name) for name in names}
        result["has_chat_template"] = artifact.header.chat_template is not None
    elif artifact.facts is not None:
        result |= asdict(artifact.facts)
    return result


def _artifact_rows(artifact: Artifact, entry: CatalogEntry | None, sha256: str) -> list[tuple[str, str]]:
    licence = artifact.licence or "unknown"
    rows = [
        ("model", artifact.name),
        ("source", artifact.source),
        ("licence", f"{licence}, {entry.licence_url}" if entry else licence),
        ("path", str(artifact.path)),
        ("size", size(artifact.size_bytes)),
        ("sha256", sha256),
        ("format", artifact.format),
    ]
    header = artifact.header
    if header is not None:
        rows += [
            ("architecture", header.architecture),
            ("weights", f"{header.n_params:,}, {header.file_type}"),
            ("layers", f"{header.n_layer}, {header.n_embd} wide"),
            ("heads", f"{_heads(header.n_head)}, {_heads(header.n_head_kv)} for keys and values"),
            ("context", f"{header.n_ctx_train:,} tokens"),
            ("sliding window", f"{header.sliding_window:,} tokens" if header.sliding_window else ""),
            ("vocabulary", f"{header.n_vocab:,} tokens"),
            ("chat template", "yes" if header.chat_template else "none"),
        ]
    elif artifact.facts is not None:
        facts = artifact.facts
        rows += [
            ("architecture", facts.architecture),
            ("weights", f"{size(facts.weights_bytes)}, {facts.quantisation}"),
            ("layers", f"{facts.n_layer}, {facts.n_embd} wide" if facts.n_embd else str(facts.n_layer)),
            ("context", f"{facts.n_ctx_max or facts.n_ctx_train:,} tokens"),
            ("vocabulary", f"{facts.n_vocab:,} tokens"),
            ("KV cache", f"{facts.kv_type}, {facts.cell_bytes:,} bytes a token"),
        ]
    return [row for row in rows if row[1]]


def _heads(count: int | tuple[int, ...]) -> str:
    return str(count) if isinstance(count, int) else f"{min(count)} to {max(count)}"
