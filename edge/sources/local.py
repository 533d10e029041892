"""A path in the user's own catalogue: their file or folder, used in place."""

from __future__ import annotations

from pathlib import Path

from edge.errors import ModelFileError, ModelNotFoundError
from edge.formats.artifact import licence_beside
from edge.sources.base import Found, Source
from edge.units import quoted

__all__ = ["LocalSource"]


class LocalSource(Source):
    """Files and folders of the user. `reference` is an absolute path."""

    def canonical(self, reference: str) -> str:
        return reference

    def find(self, reference: str) -> Found | None:
        path = Path(reference)
        try:
            if not path.exists():
                return None
            files = path.rglob("*") if path.is_dir() else [path]
            size_bytes = sum(file.stat().st_size for file in files if file.is_file())
        except OSError as error:
            raise ModelFileError(f"{path} cannot be read: {error.strerror}.", "Check its permissions.") from error
        entry = self.context.entry
        sha256 = entry.sha256 if entry is not None else None
        return Found(path, reference, size_bytes, str(path.parent), "you", sha256=sha256, licence=licence_beside(path))

    def fetch(self, reference: str) -> Found:
        found = self.find(reference)
        if found is None:
            raise ModelNotFoundError(
                f"Your catalogue says that {self.context.name} is at {reference}, and there is nothing there.",
                f"Put it back or make it again, or forget it: edge models rm {quoted(self.context.name)}",
            )
        return found
