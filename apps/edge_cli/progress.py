"""How far a download is: a bar on a terminal, a line now and then elsewhere. All on stderr."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from edge_cli import output
from edge_cli.text import size

if TYPE_CHECKING:
    from edge.catalog import DownloadProgress

__all__ = ["PullProgress"]

_WORDS = {
    "connect": "Asking for",
    "wait": "Waiting for another process that fetches",
    "download": "Fetching",
    "unpack": "Unpacking",
    "verify": "Checking",
}


class PullProgress:
    """Shows what `edge.catalog.pull` reports. Use it in a `with` block.

    Args:
        is_silent: show nothing.
    """

    def __init__(self, *, is_silent: bool = False) -> None:
        self._is_silent = is_silent
        self._bar: Any = None
        self._task: Any = None
        self._last = ("", -1)

    def report(self, progress: DownloadProgress) -> None:
        """Show one report."""
        if self._is_silent:
            return
        if self._bar is not None:
            text = f"{_WORDS[progress.phase]} {output.plain(progress.name)}"
            self._bar.update(
                self._task, description=text, completed=progress.done_bytes, total=progress.total_bytes, visible=True
            )
            return
        # In a log, a line every tenth is enough; of what has no known size, one in all.
        tenth = progress.done_bytes * 10 // progress.total_bytes if progress.total_bytes else 0
        if (progress.phase, tenth) == self._last:
            return
        self._last = (progress.phase, tenth)
        of = f": {size(progress.done_bytes)} of {size(progress.total_bytes)}" if progress.total_bytes else ""
        output.note(f"{_WORDS[progress.phase]} {output.plain(progress.name)}{of}")

    def __enter__(self) -> PullProgress:
        if not self._is_silent and output.is_terminal(sys.stderr):
            self._bar, self._task = _open_bar()
            self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.stop()


def _open_bar() -> tuple[Any, Any]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    return bar, bar.add_task("", total=None, visible=False)
