"""Keeps a collection as its files are, by looking at them again and again.

Polling works on every file system, network disks included, and costs one system call for each file.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from edge.documents.base import AddReport, OnAdd
from edge.documents.collection import Collection

__all__ = ["watch"]


def watch(
    collection: Collection,
    *,
    interval_s: float = 5.0,
    is_over: threading.Event | None = None,
    on_change: Callable[[AddReport], None] | None = None,
    on_progress: OnAdd | None = None,
) -> None:
    """Update a collection at once and then after each interval, until `is_over` is set or something is raised.

    Args:
        collection: to update.
        interval_s: between the end of one look and the next, in seconds.
        is_over: ends it, within a moment unless files are being read.
        on_change: called after the first look, and after each one that changed or skipped something new. May raise to stop.
        on_progress: see `OnAdd`.

    Raises:
        EdgeError: as `Collection.update`.
    """
    is_over = is_over or threading.Event()
    skipped: set[object] | None = None
    while not is_over.is_set():
        report = collection.update(on_progress)
        if on_change is not None and (report.added or report.removed or skipped != set(report.skipped)):
            on_change(report)
        skipped = set(report.skipped)
        is_over.wait(interval_s)
