"""Keeps a collection as its files are, by looking at them again and again.

Polling works on every file system, network disks included, and costs one system call for each file.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

from edge.documents.base import AddReport, OnAdd, Skipped
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
        on_change: called after the first look, and after each one that changed or skipped something new. Its report has only
            what was not skipped before. May raise to stop.
        on_progress: see `OnAdd`.

    Raises:
        EdgeError: as `Collection.update`.
    """
    is_over = is_over or threading.Event()
    known: set[Skipped] | None = None
    while not is_over.is_set():
        report = collection.update(on_progress)
        new = [one for one in report.skipped if known is None or one not in known]
        if on_change is not None and (known is None or report.added or report.removed or new):
            on_change(replace(report, skipped=new))
        known = set(report.skipped)
        is_over.wait(interval_s)
