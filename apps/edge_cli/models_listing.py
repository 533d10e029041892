"""Tables and JSON of `edge models`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from edge.plan.verdict import memory_verdict
from edge.units import count_text, quoted, size_text
from edge_cli import output

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edge.catalog import ArtifactEntry, CatalogEntry, Installed
    from edge.formats.artifact import Artifact
    from edge.sources.base import Found

__all__ = [
    "FROM_HUB",
    "HEADINGS",
    "UNKNOWN",
    "artifact_json",
    "artifact_rows",
    "entry_json",
    "entry_rows",
    "format_rows",
    "formats_json",
    "installed_json",
    "kind_of",
    "list_rows",
    "listed_size",
    "missing_from",
    "print_rows",
    "source_json",
    "where_from",
]

UNKNOWN = "-"
FROM_HUB = "from the hub's listing at download"
HEADINGS = ("model", "format", "size", "params", "memory", "licence", "where", "good for")
"""Cells of `list_rows`."""
_HEADER_FIELDS = """
architecture file_type n_params n_layer n_embd n_head n_head_kv n_ctx_train n_vocab sliding_window tensors_bytes is_recurrent
is_hybrid
"""


def missing_from(
    installed: Sequence[Installed], voice: Sequence[tuple[CatalogEntry, Found]], catalog: dict[str, CatalogEntry]
) -> list[tuple[CatalogEntry, ArtifactEntry]]:
    """Return the artifacts of the catalogue that are not on this device."""
    known = {name for model in installed for name in model.used_by} | {found.reference for _, found in voice}
    return [(entry, artifact) for entry in catalog.values() for artifact in entry.artifacts if artifact.reference not in known]


def listed_size(artifact: ArtifactEntry) -> str:
    """Return the size of an artifact that is not here: "98.4 MB", "~1.1 GB" as published, or that it is unknown."""
    if artifact.size_bytes:
        return size_text(artifact.size_bytes)
    return f"~{size_text(artifact.about_bytes)}" if artifact.about_bytes else UNKNOWN


def list_rows(
    installed: Sequence[Installed],
    sources: Sequence[tuple[str, Found]],
    voice: Sequence[tuple[CatalogEntry, Found]],
    missing: Sequence[tuple[CatalogEntry, ArtifactEntry]],
    catalog: Mapping[str, CatalogEntry],
    free_bytes: int,
) -> list[tuple[str, ...]]:
    """Return a row for each model in each format, with the cells of HEADINGS.

    Args:
        installed, sources, voice: models here; checkpoints and adapters here; models for voice here.
        missing: artifacts that can be downloaded.
        catalog: what is known about the models.
        free_bytes: memory that a model may take.
    """

    def about(name: str) -> tuple[str, str]:
        entry = catalog.get(name)
        count = count_text(entry.parameters) if entry and entry.parameters else UNKNOWN
        return count, entry.description if entry else ""

    def memory(size_bytes: int | None) -> str:
        return memory_verdict(size_bytes, free_bytes) if size_bytes else UNKNOWN

    rows: list[tuple[str, ...]] = []
    for model in installed:
        name = model.name + (" (default)" if "default" in model.used_by else "")
        count, good_for = about(model.name)
        kind, size = kind_of(model.format, model.quantisation), size_text(model.size_bytes)
        where = f"here, from {model.origin}"
        rows.append((name, kind, size, count, memory(model.size_bytes), model.licence or "", where, good_for))
    for kind, found in sources:
        where = f"here, for edge convert, from {found.origin}"
        size = size_text(found.size_bytes)
        rows.append((found.reference, kind, size, UNKNOWN, UNKNOWN, found.licence or "", where, ""))
    for entry, found in voice:
        where, verdict = f"here, from {found.origin}", memory(found.size_bytes)
        size = size_text(found.size_bytes)
        rows.append((entry.name, entry.purpose, size, *about(entry.name)[:1], verdict, entry.licence, where, entry.description))
    for entry, artifact in missing:
        count, good_for = about(entry.name)
        verdict = memory(artifact.size_bytes or artifact.about_bytes)
        kind = entry.purpose if entry.voice else kind_of(artifact.form, artifact.quantisation)
        rows.append(
            (entry.name, kind, listed_size(artifact), count, verdict, entry.licence, where_from(entry, artifact), good_for)
        )
    return rows


def print_rows(rows: Sequence[tuple[str, ...]]) -> None:
    """Print `list_rows`. A terminal gets the last two cells as one, which wraps."""
    if not output.is_terminal(sys.stdout):
        output.table(rows, HEADINGS)
        return
    shown = [(*row[:-2], " · ".join(cell for cell in row[-2:] if cell)) for row in rows]
    output.table(shown, (*HEADINGS[:-2], "where, and what it is good for"))


def kind_of(format: str, quantisation: str | None) -> str:
    """Return format and quantisation: "onnx int4"."""
    return f"{format} {quantisation or ''}".rstrip()


def where_from(entry: CatalogEntry, artifact: ArtifactEntry) -> str:
    """Return the command that downloads an artifact; for a path of the user's, that nothing is there."""
    from edge.catalog import is_reference

    if not is_reference(artifact.reference):
        return f"nothing at {artifact.reference}"
    same = [other for other in entry.artifacts if other.form == artifact.form and is_reference(other.reference)]
    if same[0] is not artifact:
        return f"edge models pull {quoted(artifact.reference)}"
    forms = {other.form for other in entry.artifacts}
    return f"edge models pull {quoted(entry.name)}" + (f" --format {artifact.form}" if len(forms) > 1 else "")


def installed_json(model: Installed) -> dict[str, Any]:
    """Return a model on this device."""
    return _here_json(model, model.name, model.format, model.used_by, model.quantisation or None, model.sha256)


def source_json(kind: str, found: Found) -> dict[str, Any]:
    """Return a checkpoint or an adapter that a converter downloaded."""
    return _here_json(found, found.reference, kind, found.names)


def _here_json(
    model: Installed | Found,
    name: str,
    format: str,
    used_by: Sequence[str],
    quantisation: str | None = None,
    sha256: str | None = None,
) -> dict[str, Any]:
    return {
        "name": name,
        "is_here": True,
        "format": format,
        "quantisation": quantisation,
        "reference": model.reference,
        "path": str(model.path),
        "size_bytes": model.size_bytes,
        "sha256": sha256,
        "licence": model.licence,
        "origin": model.origin,
        "owner": model.owner,
        "used_by": list(used_by),
    }


def entry_json(entry: CatalogEntry, artifact: ArtifactEntry) -> dict[str, Any]:
    """Return an artifact of the catalogue that is not on this device."""
    return {
        "name": entry.name,
        "is_here": False,
        "format": None if entry.voice else artifact.form,
        "voice": entry.voice,
        "quantisation": artifact.quantisation,
        "reference": artifact.reference,
        "title": entry.title,
        "description": entry.description,
        "licence": entry.licence,
        "licence_url": entry.licence_url,
        "must_accept_licence": entry.accept_licence,
        "parameters": entry.parameters,
        "context": entry.context,
        "references": [each.reference for each in entry.artifacts],
        "size_bytes": artifact.size_bytes,
        "about_bytes": artifact.about_bytes,
        "sha256": artifact.sha256,
    }


def entry_rows(entry: CatalogEntry) -> list[tuple[str, str]]:
    """Return the rows of a model of the catalogue that is not on this device."""
    [first, *others] = entry.artifacts
    agree = " --accept-licence" if entry.accept_licence else ""
    rows = [
        ("model", f"{entry.name} (not on this device)"),
        ("title", entry.title),
        ("good for", entry.description),
        ("licence", f"{entry.licence}, {entry.licence_url}" + (" (must be accepted)" if entry.accept_licence else "")),
        ("size", (listed_size(first) if first.size_bytes or first.about_bytes else FROM_HUB) if not others else ""),
        ("sha256", (first.sha256 or FROM_HUB) if not others else ""),
        ("parameters", f"{entry.parameters:,}" if entry.parameters else ""),
        ("context", f"{entry.context:,} tokens" if entry.context else ""),
        ("comes from", first.reference if not others else ""),
        ("download it with", f"edge models pull {quoted(entry.name)}{agree}"),
    ]
    return [row for row in rows if row[1]]


def format_rows(entry: CatalogEntry, installed: Sequence[Installed]) -> list[tuple[str, ...]]:
    """Return a row for each artifact of a model: format, size and location."""
    here = {name: model for model in installed for name in model.used_by}
    rows: list[tuple[str, ...]] = []
    for artifact in entry.artifacts:
        model = here.get(artifact.reference)
        quantisation = artifact.quantisation or (model.quantisation if model else "")
        size = size_text(model.size_bytes) if model else listed_size(artifact)
        where = f"here, {model.path}" if model else where_from(entry, artifact)
        rows.append((kind_of(artifact.form, quantisation), size, where))
    return rows


def formats_json(entry: CatalogEntry, installed: Sequence[Installed]) -> list[dict[str, Any]]:
    """Return the artifacts of a model as JSON values."""
    here = {name: model for model in installed for name in model.used_by}
    return [
        {
            "format": artifact.form,
            "quantisation": artifact.quantisation or (here[artifact.reference].quantisation or None if is_here else None),
            "reference": artifact.reference,
            "is_here": is_here,
            "path": str(here[artifact.reference].path) if is_here else None,
            "size_bytes": here[artifact.reference].size_bytes if is_here else artifact.size_bytes,
        }
        for artifact in entry.artifacts
        for is_here in [artifact.reference in here]
    ]


def artifact_json(artifact: Artifact) -> dict[str, Any]:
    """Return a model on this device with the figures of its files."""
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
        result |= {name: getattr(artifact.header, name) for name in _HEADER_FIELDS.split()}
        result["has_chat_template"] = artifact.header.chat_template is not None
    else:
        result |= asdict(artifact.facts)
    return result


def artifact_rows(artifact: Artifact, entry: CatalogEntry | None, sha256: str) -> list[tuple[str, str]]:
    """Return the rows of a model on this device. `entry` is its entry in the catalogue, `sha256` the text for the hash."""
    licence = artifact.licence or "unknown"
    url = f", {entry.licence_url}" if entry and entry.licence_url else ""
    rows = [
        ("model", artifact.name),
        ("source", artifact.source),
        ("licence", licence + url),
        ("path", str(artifact.path)),
        ("size", size_text(artifact.size_bytes)),
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
    else:
        facts = artifact.facts
        rows += [
            ("architecture", facts.architecture),
            ("weights", f"{size_text(facts.weights_bytes)}, {facts.quantisation}"),
            ("layers", f"{facts.n_layer}, {facts.n_embd} wide" if facts.n_embd else str(facts.n_layer)),
            ("context", f"{facts.n_ctx_max or facts.n_ctx_train:,} tokens"),
            ("vocabulary", f"{facts.n_vocab:,} tokens"),
            ("KV cache", f"{facts.kv_type}, {facts.cell_bytes:,} bytes a token"),
        ]
    return [row for row in rows if row[1]]


def _heads(count: int | tuple[int, ...]) -> str:
    return str(count) if isinstance(count, int) else f"{min(count)} to {max(count)}"
