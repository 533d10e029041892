"""Progress of downloads and conversions on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, TypeVar

from edge.units import size_text
from edge_cli import output

if TYPE_CHECKING:
    from edge.catalog import DownloadProgress
    from edge.documents import AddProgress

__all__ = ["ConvertProgress", "CountProgress", "DocumentProgress", "PullProgress", "TokenProgress"]

_WORDS = {
    "connect": "Looking for",
    "wait": "Waiting for another process that downloads",
    "download": "Downloading",
    "unpack": "Unpacking",
    "verify": "Checking",
}
_NOTE_S = 60.0
"""Seconds between two lines about the same step, where there is no bar."""

Self = TypeVar("Self", bound="_Progress")


class _Progress:
    """A bar on a terminal. Use it in a `with` block."""

    def __init__(self, *, is_silent: bool = False) -> None:
        self._is_silent = is_silent
        self._bar: Any = None
        self._task: Any = None

    def _open(self) -> tuple[Any, Any]:
        """Return a rich.progress.Progress and its task."""
        raise NotImplementedError

    def __enter__(self: Self) -> Self:
        if not self._is_silent and output.is_terminal(sys.stderr):
            self._bar, self._task = self._open()
            self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.stop()


class PullProgress(_Progress):
    """Shows the progress of `edge.catalog.pull`, or nothing if `is_silent`."""

    _last = ("", -1)

    def report(self, progress: DownloadProgress) -> None:
        """Show one report."""
        if self._is_silent:
            return
        text = f"{_WORDS[progress.phase]} {output.plain(progress.name)}"
        if self._bar is not None:
            self._bar.update(
                self._task, description=text, completed=progress.done_bytes, total=progress.total_bytes, visible=True
            )
            return
        # In a log, one line for each tenth is enough; without a known size, one line in all.
        tenth = progress.done_bytes * 10 // progress.total_bytes if progress.total_bytes else 0
        if (progress.phase, tenth) == self._last:
            return
        self._last = (progress.phase, tenth)
        of = f": {size_text(progress.done_bytes)} of {size_text(progress.total_bytes)}" if progress.total_bytes else ""
        output.note(text + of)

    def _open(self) -> tuple[Any, Any]:
        bar = _bar("bar", "bytes", "speed", "left")
        return bar, bar.add_task("", total=None, visible=False)


class ConvertProgress(_Progress):
    """Shows the progress of a conversion: a bar with the time left on a terminal, a line for each step elsewhere.

    A step of several minutes also shows its detail, such as the divergence of a student from its teacher.

    Attributes:
        peak_bytes: title of a finished step -> the most memory it held.
        resident_bytes: the same, with mapped files.
    """

    def __init__(self) -> None:
        super().__init__()
        self._last = 0
        self._said_at = 0.0
        self.peak_bytes: dict[str, int] = {}
        self.resident_bytes: dict[str, int] = {}

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
            output.note(title + (" (already done)" if progress.is_resumed else ""))
        elif progress.detail and time.monotonic() - self._said_at >= _NOTE_S:
            self._said_at = time.monotonic()
            output.note(f"  {progress.share:4.0%}  {output.plain(progress.detail)}")

    def _open(self) -> tuple[Any, Any]:
        bar = _bar("short bar", "share", "{left}", rest="{detail}")
        return bar, bar.add_task("", total=1.0, left="", detail="")


class TokenProgress(_Progress):
    """Shows how much of a prompt is prefilled, on a terminal."""

    def report(self, done: int, total: int) -> None:
        """Show that `done` of `total` tokens are in the KV cache."""
        if self._bar is not None and total:
            self._bar.update(self._task, completed=done, total=total, visible=True)

    def _open(self) -> tuple[Any, Any]:
        bar = _bar("bar", "count", "tokens", "left")
        return bar, bar.add_task("Processing the prompt", total=None, visible=False)


class CountProgress(_Progress):
    """Shows how many of many things are done, and the time left: a bar on a terminal, a line a minute elsewhere.

    Args:
        what: what is done to them, such as "answered".
        total: how many there are.
        done: how many were done before.
    """

    def __init__(self, what: str, total: int, done: int = 0) -> None:
        super().__init__()
        self._what, self._total, self._done, self._n_before = what, total, done, done
        self._began = self._said_at = time.monotonic()

    def step(self) -> None:
        """Note that one more is done."""
        self._done += 1
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done)
        elif (now := time.monotonic()) - self._said_at >= _NOTE_S:
            self._said_at = now
            left_s = (now - self._began) / (self._done - self._n_before) * (self._total - self._done)
            output.note(f"{self._done:,} of {self._total:,} {self._what}, {_clock(left_s)} left")

    def _open(self) -> tuple[Any, Any]:
        bar = _bar("bar", "count", "left")
        return bar, bar.add_task(self._what, total=self._total, completed=self._done)


class DocumentProgress(_Progress):
    """Shows how many files are read, then how many passages have a vector: a bar on a terminal, a line a minute elsewhere."""

    _said_at = 0.0
    _phase = ""

    def report(self, progress: AddProgress) -> None:
        """Show one report."""
        if progress.phase != self._phase:
            self._phase, self._said_at = progress.phase, time.monotonic()
            if progress.phase == "wait" and self._bar is None:
                output.note("Waiting for another process that adds documents.")
            elif self._bar is not None and progress.phase != "wait":
                self._bar.reset(self._task)
        text = {"wait": "Waiting for another process", "read": "Reading", "embed": "Computing vectors"}[progress.phase]
        if self._bar is not None:
            name = output.plain(progress.path.name) if progress.path else ""
            total = progress.total or None
            self._bar.update(self._task, description=text, completed=progress.done, total=total, name=name, visible=True)
        elif progress.total and (now := time.monotonic()) - self._said_at >= _NOTE_S:
            self._said_at = now
            output.note(f"{text}: {progress.done:,} of {progress.total:,}")

    def _open(self) -> tuple[Any, Any]:
        bar = _bar("short bar", "count", "left", rest="{name}")
        return bar, bar.add_task("", total=None, visible=False, name="")


def _bar(*columns: str, rest: str = "") -> Any:
    """Return a rich.progress.Progress, without a task.

    Args:
        columns: what follows the description of a task: a kind of column, a "{field}" of the task, or a word.
        rest: the field that takes the remaining room, and is truncated first.
    """
    from rich import progress
    from rich.console import Console
    from rich.table import Column

    kinds = {
        "bar": progress.BarColumn(),
        "short bar": progress.BarColumn(bar_width=16),
        "bytes": progress.DownloadColumn(),
        "count": progress.MofNCompleteColumn(),
        "left": progress.TimeRemainingColumn(),
        "share": progress.TaskProgressColumn(),
        "speed": progress.TransferSpeedColumn(),
    }

    def text(shown: str, column: Column | None = None) -> progress.TextColumn:
        return progress.TextColumn(shown.replace("{", "{task.fields[").replace("}", "]}"), markup=False, table_column=column)

    made = [progress.TextColumn("{task.description}", markup=False), *(kinds.get(name) or text(name) for name in columns)]
    if rest:
        made.append(text(rest, Column(ratio=1, no_wrap=True, overflow="ellipsis")))
    return progress.Progress(*made, expand=bool(rest), console=Console(stderr=True), transient=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}"
