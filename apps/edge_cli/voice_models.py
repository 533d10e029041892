"""Models for voice that a command needs: fetched when they are first used, with progress."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge.config import Settings

__all__ = ["fetch_voice"]


def fetch_voice(names: Iterable[str], settings: Settings) -> None:
    """Fetch models for voice unless they are here.

    Args:
        names: in the catalogue.
        settings: directories, offline mode.

    Raises:
        ModelNotFoundError: there is no such model, or edge is offline and it is not here.
        DownloadError, ChecksumError, StorageError: it could not be fetched.
    """
    from edge.catalog import find_voice, pull_voice
    from edge_cli.progress import PullProgress

    for name in names:
        if find_voice(name, settings=settings) is None:
            with PullProgress() as progress:
                pull_voice(name, settings=settings, on_progress=progress.report)
