"""The only module that writes to the terminal: answers to stdout, everything else to stderr.

Output into a pipe is plain: no colour, no control characters, no progress.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
import textwrap
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO

from edge_chat.format import takes_unicode
from edge_cli.streams import stdout_failure

__all__ = [
    "Status",
    "error",
    "is_terminal",
    "json_list",
    "json_object",
    "line",
    "note",
    "paint",
    "piece",
    "plain",
    "table",
    "table_lines",
    "terminal_width",
    "wide_table",
    "wrap",
    "write_file",
]

# Terminal control sequences. A model must not be able to move the cursor, set the title or hide text.
_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_LINE_ENDS = re.compile("[\t\n\u2028\u2029]+")  # a name with a line end must not look like another row
_DIRECTIONS = re.compile("[\u202a-\u202e\u2066-\u2069]")  # a name in a message must not turn the rest around
_LEAST_ROOM = 24
_COLOURS = {"red": "31", "green": "32", "yellow": "33", "bold": "1"}


def piece(text: str) -> None:
    """Write a part of the answer at once.

    Raises:
        OutputClosedError: nobody reads it. The other functions for the answer raise it too.
        StorageError: it cannot be written. Likewise.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except (OSError, ValueError, AttributeError) as error:
        raise stdout_failure(error) from None


def line(text: str = "") -> None:
    """Write a line of the answer."""
    piece(text + "\n")


def json_object(value: object, *, compact: bool = False) -> None:
    """Write a JSON value as the answer; `compact` puts it on one line."""
    is_ascii = not takes_unicode(sys.stdout)
    indent = None if compact else 2
    line(json.dumps(_for_json(value), ensure_ascii=is_ascii, indent=indent, allow_nan=False, default=str))


def json_list(values: Iterable[object]) -> None:
    """Write a JSON list as `json_object` does, one value at a time."""
    is_ascii = not takes_unicode(sys.stdout)
    before = "[\n"
    for value in values:
        text = json.dumps(_for_json(value), ensure_ascii=is_ascii, indent=2, allow_nan=False, default=str)
        piece(before + textwrap.indent(text, "  "))
        before = ",\n"
    line("[]" if before == "[\n" else "\n]")


def table(rows: Iterable[Sequence[str]], headings: Sequence[str] = (), *, indent: str = "", gap: str = "  ") -> None:
    """Write rows as aligned columns below their headings. On a terminal too narrow for it the last column wraps under
    itself, or each row becomes a block of its own."""
    for text in table_lines(rows, headings, sys.stdout, indent=indent, gap=gap):
        line(text)


def table_lines(
    rows: Iterable[Sequence[str]],
    headings: Sequence[str] = (),
    stream: TextIO | None = None,
    *,
    indent: str = "",
    gap: str = "  ",
) -> list[str]:
    """Return the lines of a table; none if it has no rows.

    Args:
        rows: as many cells each.
        headings: of the columns.
        stream: the lines are for; a terminal gets bold headings and lines as wide as it is.
        indent: in front of every line.
        gap: between two columns.
    """
    rows = [[_LINE_ENDS.sub(" ", plain(cell)) for cell in row] for row in rows]
    if not rows:
        return []
    rows = [list(headings), *rows] if headings else rows
    widths = [max(cell_width(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    start = len(indent) + sum(widths) + len(gap) * len(widths)
    room = terminal_width(stream) - start if is_terminal(stream) else None
    widest = max(cell_width(row[-1]) for row in rows)
    if room is not None and headings and start - len(gap) > terminal_width(stream):
        return _records(rows, terminal_width(stream), stream, indent)
    if room is not None and room < min(widest, _LEAST_ROOM):  # below its row there is more room for the last column
        start, room = len(indent) + 4, terminal_width(stream) - len(indent) - 4
    lines: list[str] = []
    for number, (*first, last) in enumerate(rows):
        padded = "".join(cell + " " * (width - cell_width(cell)) + gap for cell, width in zip(first, widths, strict=True))
        texts = [indent + padded, *wrap(last, max(room, _LEAST_ROOM))] if room else [indent + padded, last]
        if number == 0 and headings and stream is not None:
            texts = [paint(text.rstrip(), "bold", stream) + text[len(text.rstrip()) :] for text in texts]
        is_beside = cell_width(indent + padded) == start
        if is_beside:
            texts[:2] = ["".join(texts[:2])]
        lines += [texts[0].rstrip(), *(" " * start + text for text in texts[1:])]
    return lines


def _records(rows: Sequence[Sequence[str]], width: int, stream: TextIO | None, indent: str) -> list[str]:
    """Return a block of lines for each row but the first, which has the names of the cells; empty cells are left out."""
    headings, *rows = rows
    lines: list[str] = []
    for row in rows:
        cells = zip(headings[1:], row[1:], strict=True)
        texts = [row[0], *(f"{name}: {cell}" for name, cell in cells if cell not in ("", "-"))]
        for number, text in enumerate(texts):
            first, *rest = wrap(text, width - len(indent) - (4 if number else 0))
            before = indent + "  " * bool(number)
            shown = paint(first, "bold", stream) if stream is not None and not number else first
            lines += [before + shown, *(f"{before}  {line}" for line in rest)]
    return lines


def wrap(text: str, width: int) -> list[str]:
    """Return a text in lines that are at most `width` cells wide.

    A longer word of wide characters (Chinese, Japanese) is split; another, such as a path, is not, so that it can be copied.
    """
    lines: list[str] = []
    row = ""
    for word in text.split(" "):
        if row and cell_width(row) + 1 + cell_width(word) > width:
            lines.append(row)
            row = ""
        row = f"{row} {word}" if row else word
        while cell_width(row) > width and not word.isascii():
            n_fit = next(n for n in range(len(row), 0, -1) if n == 1 or cell_width(row[:n]) <= width)
            lines.append(row[:n_fit])
            row = row[n_fit:]
    return [*lines, row] if row or not lines else lines


def cell_width(text: str) -> int:
    """Return the number of cells that a text takes on a terminal."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def wide_table(headings: Sequence[str], rows: Sequence[Sequence[str]], n_first: int, bad: Iterable[int] = ()) -> None:
    """Write a table of names and figures. Empty columns are left out; a terminal too narrow for it gets two tables.

    Args:
        headings: of the columns; the first has the names.
        rows: as many cells each.
        n_first: columns of the first of the two tables.
        bad: indices of rows to show in red.
    """
    used = [index for index in range(len(headings)) if index == 0 or any(row[index] for row in rows)]
    if not is_terminal(sys.stdout):
        table([[row[index] or "-" for index in used] for row in rows], [headings[index] for index in used])
        return
    import io

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    def columns(indices: Sequence[int]) -> Table:
        shown = Table(box=None, header_style="bold", pad_edge=False)
        for index in indices:
            width = max(len(cell) for cell in (headings[index], *(row[index] for row in rows)))
            is_name = index == 0  # a narrow terminal shortens names, not figures
            shown.add_column(
                headings[index], justify="left" if is_name else "right", overflow="fold", min_width=10 if is_name else width
            )
        for number, row in enumerate(rows):
            shown.add_row(*(Text(plain(row[index])) for index in indices), style="red" if number in red else None)
        return shown

    red = set(bad)
    text = io.StringIO()
    is_plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
    console = Console(file=text, force_terminal=True, no_color=is_plain)
    first, rest = [index for index in used if index < n_first], [index for index in used if index >= n_first]
    whole = columns(used)
    if not rest or console.measure(whole, options=console.options.update(width=500)).maximum <= console.width:
        console.print(whole)
    else:
        console.print(columns(first))
        console.print()
        console.print(columns([0, *rest]))
    piece(text.getvalue())


def note(text: str = "") -> None:
    """Write something besides the answer to stderr. It is dropped if nobody reads that."""
    try:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):
        pass  # there is no other place for it


def error(message: str, hint: str = "") -> None:
    """Write an error, as one line, and its hint to stderr."""
    note(f"{paint('Error:', 'red', sys.stderr)} {_DIRECTIONS.sub('', plain(' '.join(message.splitlines())))}")
    if hint:
        note(_DIRECTIONS.sub("", plain(hint)))


def check_target(path: Path | None) -> None:
    """Refuse a file to write, before minutes of work for it.

    Raises:
        StorageError: its folder is missing, or nothing can be written there.
    """
    from edge.errors import StorageError

    if path is None:
        return
    if not path.parent.is_dir():
        raise StorageError(f"{path} cannot be written: there is no folder {path.parent}.", "Make it, or choose another place.")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise StorageError(f"{path} cannot be written: permission denied.", "Choose another place.")


def write_file(path: Path, text: str) -> None:
    """Write a file that the user named.

    Raises:
        StorageError: it cannot be written.
    """
    from edge.errors import StorageError

    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror}.", "Choose another place.") from error


def plain(text: str) -> str:
    """Remove terminal control sequences; line ends and tabs stay."""
    return _CONTROL.sub("", text)


def paint(text: str, colour: str, stream: TextIO) -> str:
    """Colour a text, unless the stream is not a terminal or NO_COLOR is set."""
    shows = is_terminal(stream) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m" if shows else text


def is_terminal(stream: TextIO | None) -> bool:
    """Return whether a stream is a terminal."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # closed
        return False


class Status:
    """One line on stderr that changes while the user waits and disappears at the end. Silent unless stderr is a terminal.

    Use it in a `with` block; it is safe to call from several threads.
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
                width = max(20, terminal_width(sys.stderr) - 1)
                sys.stderr.write("\r\x1b[K" + plain(text)[:width])
                sys.stderr.flush()
                self._is_shown = True

    def show_share(self, text: str, share: float) -> None:
        """Replace the line with a percentage and a text. `share` is from 0 to 1."""
        self.show(f"{100 * share:3.0f}%  {text}")

    def watch(self, describe: Callable[[], str]) -> None:
        """Ask for the text five times a second until the status is closed; "" leaves the line as it is."""
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
        """Remove the line for good."""
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
    """Replace infinities, which JSON does not have, by text."""
    if isinstance(value, dict):
        return {key: _for_json(below) for key, below in value.items()}
    if isinstance(value, (list, tuple)):
        return [_for_json(below) for below in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def terminal_width(stream: TextIO | None) -> int:
    """Return the columns of a terminal, or 80 if they are unknown."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80  # type: ignore[union-attr]  # None is an AttributeError
    except (OSError, ValueError, AttributeError):
        return 80
