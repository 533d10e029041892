"""`edge models` for voice: these models are folders of plain files, with neither formats nor a header."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from edge.units import quoted, size_text
from edge_cli import output, signals

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge.catalog import CatalogEntry
    from edge.config import Settings
    from edge.sources.base import Found

__all__ = ["expand_voice", "pull", "show", "voice_json"]


def expand_voice(name: str, settings: Settings) -> tuple[str, ...]:
    """Return the models for voice that a name means: itself, those of a set, or () if it means something else."""
    from edge.catalog import find_bundle, is_voice

    return find_bundle(name, settings) or ((name,) if is_voice(name, settings) else ())


def pull(names: Sequence[str], settings: Settings, *, accept_licence: bool, is_quiet: bool, as_json: bool) -> int:
    """Fetch models for voice, print their folders, and return the exit code."""
    from edge.catalog import find_entry, pull_voice
    from edge_cli.progress import PullProgress

    results = []
    for name in names:
        entry = find_entry(name, settings)
        try:
            with PullProgress(is_silent=is_quiet) as progress:
                found = pull_voice(name, settings=settings, on_progress=progress.report, accept_licence=accept_licence)
        except KeyboardInterrupt:
            output.note("Interrupted. The files that have arrived are kept: run the same command again to resume.")
            return signals.exit_code()
        results.append(voice_json(entry, found, name))
        if not as_json and not is_quiet:
            licence = (entry and entry.licence) or found.licence or "unknown"
            output.note(f"{name}: {size_text(found.size_bytes)}, licence {licence}")
            output.line(str(found.path))
    if as_json:
        output.json_object(results[0] if len(names) == 1 else results)
    return 0


def show(names: Sequence[str], settings: Settings, *, is_path_only: bool, is_verified: bool, as_json: bool) -> None:
    """Print what is known of models for voice: rows, JSON, or the paths of their folders.

    Raises:
        ModelNotFoundError: one is not on this device, and its path or a check is asked for.
        ModelFileError: a file is damaged.
    """
    from edge.catalog import find_voice, verify, voice_folder
    from edge.catalog.entries import find_entry
    from edge_cli.progress import PullProgress

    results = []
    for place, name in enumerate(names):
        entry, found, digest = find_entry(name, settings), find_voice(name, settings=settings), ""
        if is_path_only or is_verified:
            folder = voice_folder(name, settings=settings)
        if is_verified:
            with PullProgress(is_silent=not output.is_terminal(sys.stderr)) as progress:
                digest = verify(name, settings=settings, on_progress=progress.report)
        if is_path_only:
            output.line(str(folder))
        elif as_json:
            results.append(voice_json(entry, found, name) | ({"sha256": digest} if digest else {}))
        else:
            if place:
                output.line()
            output.table(_rows(name, entry, found, digest))
    if as_json and not is_path_only:
        output.json_object(results[0] if len(names) == 1 else results)


def voice_json(entry: CatalogEntry | None, found: Found | None, name: str) -> dict[str, Any]:
    """Return a model for voice as a JSON value.

    Args:
        entry: in the catalogue; None if it is known by a reference only.
        found: None if it is not on this device.
        name: as the user wrote it.
    """
    about: dict[str, Any] = {"name": entry.name if entry else name, "is_here": found is not None}
    if entry is not None:
        first = entry.artifacts[0]
        about |= {
            "voice": entry.voice,
            "title": entry.title,
            "description": entry.description,
            "licence": entry.licence,
            "licence_url": entry.licence_url,
            "reference": first.reference,
            "quantisation": first.quantisation,
            "size_bytes": first.size_bytes,
            "archive_bytes": first.archive_bytes,
        }
    if found is not None:
        about |= {
            "path": str(found.path),
            "size_bytes": found.size_bytes,
            "origin": found.origin,
            "owner": found.owner,
            "files": [{"name": file.name, "size_bytes": file.size_bytes, "sha256": file.sha256} for file in found.files],
        }
    return about


def _rows(name: str, entry: CatalogEntry | None, found: Found | None, digest: str) -> list[tuple[str, str]]:
    rows = [("model", (entry.name if entry else name) + ("" if found else " (not on this device)"))]
    if entry is not None:
        first = entry.artifacts[0]
        download = f"{size_text(first.size_bytes)}" if first.size_bytes else ""
        packages = f", of packages of {size_text(first.archive_bytes)}" if first.archive_bytes else ""
        rows += [
            ("title", entry.title),
            ("good for", entry.description),
            ("for", f"voice: {entry.purpose}"),
            ("licence", f"{entry.licence}, {entry.licence_url}"),
            ("size", "" if found else download + packages),
            ("download it with", "" if found else f"edge models pull {quoted(entry.name)}"),
        ]
    if found is not None:
        rows += [
            ("path", str(found.path)),
            ("size", size_text(found.size_bytes)),
            ("files", ", ".join(file.name for file in found.files)),
            ("sha256", f"{digest} (just checked)" if digest else ""),
            ("comes from", found.origin),
        ]
    return [row for row in rows if row[1]]
