"""The only module that writes to the terminal: answers to stdout, everything else to stderr.

What goes into a pipe is plain: no colour, no control characters, no progress.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TextIO

__all__ = [
    "OutputClosedError",
    "Status",
    "abandon_stdout",
    "error",
    "is_terminal",
    "json_object",
    "line",
    "note",
    "paint",
    "piece",
    "plain",
    "table",
]

# What a terminal would act on. A model must not be able to move the cursor, set the title or hide text.
_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_COLOURS = {"red": "31", "green": "32", "yellow": "33", "bold": "1", "dim": "2"}


class OutputClosedError(Exception):
    """Nobody reads stdout any more (`| head`): not an error, but the end of the work."""


def piece(text: str) -> None:
    """A part of the answer, shown at once.

    Raises:
        OutputClosedError: nobody reads it.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise OutputClosedError from None


def line(text: str = "") -> None:
    """A line of the answer.

    Raises:
        OutputClosedError: nobody reads it.
    """
    piece(text + "\n")


def json_object(value: object, *, compact: bool = False) -> None:
    """A JSON value as the answer; `compact` puts it on one line.

    Raises:
        OutputClosedError: nobody reads it.
    """
    line(json.dumps(_for_json(value), ensure_ascii=False, indent=None if compact else 2, allow_nan=False, default=str))


def table(rows: Iterable[Sequence[str]], headings: Sequence[str] = ()) -> None:
    """Rows as aligned columns, with headings on a terminal only: a pipe gets the data.

    Raises:
        OutputClosedError: nobody reads it.
    """
    rows = [[plain(cell) for cell in row] for row in rows]
    if headings and is_terminal(sys.stdout):
        rows.insert(0, [paint(heading, "bold", sys.stdout) for heading in headings])
    if not rows:
        return
    widths = [max(len(_CONTROL.sub("", row[column])) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        padded = (cell + " " * (width - len(_CONTROL.sub("", cell))) for cell, width in zip(row, widths, strict=True))
        line("  ".join(padded).rstrip())


def note(text: str = "") -> None:
    """Something besides the answer: to stderr. Where nobody reads that, nothing is lost that was asked for."""
    try:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
    except (BrokenPipeError, ValueError):
        pass  # there is nowhere left to say it


def error(message: str, hint: str = "") -> None:
    """An error and what to do about it, to stderr."""
    note(f"{paint('Error:', 'red', sys.stderr)} {plain(message)}")
    if hint:
        note(plain(hint))


def plain(text: str) -> str:
    """Text without what a terminal would act on; line ends and tabs stay."""
    return _CONTROL.sub("", text)


def paint(text: str, colour: str, stream: TextIO) -> str:
    """Text in a colour or weight where the stream shows it and the user has not said NO_COLOR."""
    shows = is_terminal(stream) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m" if shows else text


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a person watches this stream."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # closed
        return False


def abandon_stdout() -> None:
    """Send what is still buffered nowhere, so that the interpreter does not complain about it at exit."""
    try:
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, sys.stdout.fileno())
        os.close(sink)
    except (OSError, ValueError, AttributeError):
        pass  # not a real stream (a test's), which does not complain either


class Status:
    """One line on stderr that changes while the user waits and is gone afterwards. Silent unless stderr is a terminal.

    Use it in a `with` block; safe to call from several threads.
    """

    def __init__(self) -> None:
        self._is_shown = False
        self._is_closed = not is_terminal(sys.stderr) or os.environ.get("TERM") == "dumb"
        self._lock = threading.Lock()
        self._watcher: threading.Thread | None = None
        self._stop = threading.Event()

    def show(self, text: str) -> None:
        """Replace the line."""
        with self._lock:
            if not self._is_closed:
                width = max(20, _columns() - 1)
                sys.stderr.write("\r\x1b[K" + plain(text)[:width])
                sys.stderr.flush()
                self._is_shown = True

    def watch(self, describe: Callable[[], str]) -> None:
        """Ask for the text a few times a second until the status is closed; "" leaves the line as it is."""
        if self._is_closed:
            return

        def run() -> None:
            while not self._stop.wait(0.2):
                if text := describe():
                    self.show(text)

        self._watcher = threading.Thread(target=run, name="edge-status", daemon=True)
        self._watcher.start()

    def clear(self) -> None:
        """Remove the line, so that something else can be written."""
        with self._lock:
            self._erase()

    def close(self) -> None:
        """Remove the line; nothing is shown any more."""
        self._stop.set()
        with self._lock:
            self._erase()
            self._is_closed = True

    def _erase(self) -> None:
        if self._is_shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
        self._is_shown = False

    def __enter__(self) -> Status:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _for_json(value: Any) -> Any:
    """A value in which infinities are texts, since JSON has none."""
    if isinstance(value, dict):
        return {key: _for_json(below) for key, below in value.items()}
    if isinstance(value, (list, tuple)):
        return [_for_json(below) for below in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _columns() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError, AttributeError):
        return 80
