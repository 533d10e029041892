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
    from edge_cli import output
    from edge_cli.progress import PullProgress
    from edge_voice.models import fetch_models

    for name in names:
        with PullProgress() as progress:
            lines = fetch_models([name], settings, lambda number, n_models, step: progress.report(step))
        for line in lines:
            output.note(line)
