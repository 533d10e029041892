"""How far a download is: a bar on a terminal, a line now and then elsewhere. All on stderr."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from edge_cli import output
from edge_cli.text import size

if TYPE_CHECKING:
    from edge.catalog import DownloadProgress

__all__ = ["ConvertProgress", "PullProgress"]

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


_NOTE_S = 60.0
"""Seconds between two lines about the same step, where there is no bar."""


class ConvertProgress:
    """Shows what a conversion reports: a bar with the time left on a terminal, a line a step elsewhere, in a `with` block.

    A step that takes minutes also says what it is doing: of a training, how far the student is from its teacher.
    """

    def __init__(self) -> None:
        self._bar: Any = None
        self._task: Any = None
        self._last = 0
        self._said_at = 0.0
        self.peak_bytes: dict[str, int] = {}  # title of a step that is done -> the most memory it held
        self.resident_bytes: dict[str, int] = {}  # the same with mapped files

    def report(self, progress: Any) -> None:
        """Show one report (an edge_convert.pipeline.Progress)."""
        if progress.peak_bytes:
            self.peak_bytes[progress.title] = progress.peak_bytes
            self.resident_bytes[progress.title] = progress.resident_bytes
        title = f"{progress.step}/{progress.n_steps} {output.plain(progress.title)}"
        if self._bar is not None:
            left = "" if progress.seconds_left is None else f"{_clock(progress.seconds_left)} left"
            shown = {"left": left, "detail": output.plain(progress.detail)}
            self._bar.update(self._task, description=title, completed=progress.total_share, **shown)
        elif progress.step != self._last:
            self._last, self._said_at = progress.step, time.monotonic()
            output.note(title + (" (done already)" if progress.is_resumed else ""))
        elif progress.detail and time.monotonic() - self._said_at >= _NOTE_S:
            self._said_at = time.monotonic()
            output.note(f"  {progress.share:4.0%}  {output.plain(progress.detail)}")

    def __enter__(self) -> ConvertProgress:
        if output.is_terminal(sys.stderr):
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
            from rich.table import Column

            # The detail takes what room there is, and gives way where there is none.
            rest = Column(ratio=1, no_wrap=True, overflow="ellipsis")
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=16),
                TaskProgressColumn(),
                TextColumn("{task.fields[left]}", markup=False),
                TextColumn("{task.fields[detail]}", markup=False, table_column=rest),
                expand=True,
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task("", total=1.0, left="", detail="")
            self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.stop()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}"
