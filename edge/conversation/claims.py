"""Marks the conversations that this process is answering, so that no other one answers them at the same time.

A mark is a locked file in a folder beside the database. The kernel releases it when the process dies, however that happens.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from edge.files import try_lock

__all__ = ["claim"]

_TRIES = 10


def claim(database: Path, id: str) -> Callable[[], None] | None:
    """Claim a conversation.

    Args:
        database: the file of the conversations.
        id: of the conversation.

    Returns:
        A function that releases it; None if another process has it. Where there are no locks everybody gets it.
    """
    folder = database.with_name(f"{database.name}.busy")
    path = folder / id
    for _ in range(_TRIES):
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            continue  # another process has just removed the empty folder
        except OSError:
            return lambda: None  # a full or read-only disk, which saving the message explains
        try:
            if not try_lock(handle):
                os.close(handle)
                return None
            if os.fstat(handle).st_nlink:
                return lambda: _release(handle, path)
        except OSError:
            os.close(handle)
            return lambda: None
        os.close(handle)  # the process that had it has just removed the file
    return lambda: None


def _release(handle: int, path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
    os.close(handle)
    with contextlib.suppress(OSError):  # others are in it
        path.parent.rmdir()
