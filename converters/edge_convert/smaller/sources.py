"""Finds and reads the texts of a recipe on this machine. Nothing is downloaded, and nothing of a package is run."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from edge.errors import StorageError, UsageError
from edge.units import reason
from edge_convert.smaller.recipe import Source

__all__ = ["find_file", "read_documents"]

_MAX_BYTES = 1 << 30
_ENOUGH_DOCUMENTS = 20
# Whole paragraphs, else lines, else words.
_PIECE = re.compile(r".{1000,2000}\n\n|.{1000,2000}\n|.{1,2000}(?:\s|$)|.{1,2000}", re.DOTALL)


def find_file(source: Source) -> Path:
    """Return the file of a source.

    Raises:
        UsageError: the package is not installed, or the file is missing or too large.
    """
    if not source.package:
        path = Path(source.file)
    else:
        spec = find_spec(source.package) if source.package.isidentifier() else None
        places: Sequence[str] = (spec.submodule_search_locations if spec else None) or ()
        if not places:
            hint = f"Install it: {source.install}" if source.install else "Install it, or leave that text out."
            raise UsageError(f"The text {source.file} is in the package {source.package}, which is not installed.", hint)
        path = next(iter(places)) / Path(source.file)
    if not path.is_file():
        raise UsageError(f"There is no text {path}.", "Check the recipe, or the path.")
    if path.stat().st_size > _MAX_BYTES:
        raise UsageError(f"{path} is larger than 1 GB.", "Give a part of it: a distillation reads some million tokens at most.")
    return path


def read_documents(source: Source) -> list[str]:
    """Read the documents of a source, each once, in the file's order.

    Raises:
        UsageError: the file is missing, not a text, or empty.
        StorageError: it is not the recipe's version of the file.
    """
    path = find_file(source)
    content = path.read_bytes()
    if source.sha256 and hashlib.sha256(content).hexdigest() != source.sha256:
        raise StorageError(
            f"{path.name} is not the version that the recipe was written for.",
            source.install or "Find that version.",
        )
    try:
        text = content.decode("utf-8")
        if source.field:
            lines = [json.loads(line) for line in text.splitlines() if line.strip()]
            found: list[object] = [line.get(source.field) for line in lines if isinstance(line, dict)]
        else:
            found = list(_documents(text))
    except ValueError as error:
        raise UsageError(
            f"{path} cannot be read as a text: {reason(error)}.", "Give a text file or JSON lines in UTF-8."
        ) from error
    documents = list(dict.fromkeys(part.strip() for part in found if isinstance(part, str) and part.strip()))
    if not documents:
        raise UsageError(f"{path} holds no text.", "Give another file" + (", or another field." if source.field else "."))
    return documents


def _documents(text: str) -> list[str]:
    """Split a text at two empty lines; one with few of those into pieces, so that some can be held out."""
    found = text.split("\n\n\n")
    return found if len(found) >= _ENOUGH_DOCUMENTS else [piece for part in found for piece in _PIECE.findall(part)]
