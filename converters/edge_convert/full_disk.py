"""Errors of a full disk. Libraries report one in their own words, if at all, so the disk itself is asked."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edge.errors import StorageError

__all__ = ["name_full_disk", "storage_error"]

_FULL_BYTES = 1 << 20
"""Less free space than that is a full disk, if something has just failed: a library writes in pieces."""


@contextmanager
def name_full_disk(folder: Path) -> Iterator[None]:
    """Turn an error, of whatever kind, into that of a full disk if that is what the disk of a folder is.

    To be left before anything that was half written is removed.

    Raises:
        OSError: ENOSPC, from the original error.
    """
    try:
        yield
    except Exception as error:
        if shutil.disk_usage(folder).free >= _FULL_BYTES:
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error


def storage_error(error: OSError, folder: Path) -> StorageError:
    """Return the error for the user, of a failure to write into a folder."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(f"The disk of {folder} is full.", "Free some space and run the same command again: it resumes.")
    return StorageError(f"{error.filename or folder} cannot be used: {error.strerror or error}.", "Check its permissions.")
