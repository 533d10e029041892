#!/usr/bin/env python3
"""Record the demo of the README: `edge chat` with the real model in a terminal of its own, as an asciinema cast and as an SVG.

    python tools/record_demo.py docs/pictures/demo

Writes demo.cast (play it with `asciinema play`) and demo.svg, an animation without scripts. Everything in it was on the screen
of a real run, at its own speed; only pauses longer than LONGEST_PAUSE_S are cut. The conversation is in a folder that is
deleted afterwards. Needs the packages of the extra [dev] and the model smollm2-135m.
"""

from __future__ import annotations

import argparse
import codecs
import json
import os
import pty
import re
import select
import shutil
import struct
import sys
import tempfile
import termios
import time
from collections.abc import Callable
from fcntl import ioctl
from html import escape
from pathlib import Path
from typing import Any

COLUMNS, ROWS = 100, 28
STILL_S, LONGEST_PAUSE_S, SHORTEST_FRAME_S, LAST_FRAME_S = 1.5, 1.2, 0.08, 4.0
CELL_WIDTH, CELL_HEIGHT, MARGIN = 8.4, 18.0, 12.0
GROUND, INK = "#16181c", "#d8dade"
PROMPT = "\x1b[32m~ $\x1b[0m "
NAMED = {
    "black": "#1c1e22", "red": "#e06c75", "green": "#98c379", "brown": "#e5c07b", "blue": "#61afef", "magenta": "#c678dd",
    "cyan": "#56b6c2", "white": "#d8dade",
}  # fmt: skip

Event = tuple[float, str]


class Terminal:
    """A program in a pseudo-terminal, and all that it writes.

    Args:
        environ: of the program.

    Attributes:
        events: (seconds since the start, text).
    """

    def __init__(self, environ: dict[str, str]) -> None:
        self.events: list[Event] = []
        self._environ = environ
        self._began = time.monotonic()
        self._fd = -1
        self._screen, self._stream = new_screen()

    def start(self, *command: str) -> None:
        """Run a program; what it writes follows a shell's prompt with its name."""
        self.write(PROMPT)
        for letter in " ".join([Path(command[0]).name, *command[1:]]):
            time.sleep(0.05)
            self.write(letter)
        time.sleep(0.4)
        self.write("\r\n")
        pid, self._fd = pty.fork()
        if pid == 0:
            os.execve(command[0], list(command), self._environ)
        ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def write(self, text: str) -> None:
        """Add text to what was written."""
        self.events.append((time.monotonic() - self._began, text))
        self._stream.feed(text)

    def type(self, text: str, pause_s: float = 0.045) -> None:
        """Press keys, one after another."""
        for key in re.findall(r"\x1b\[[0-9;]*[A-Za-z~]|.", text, re.DOTALL):
            os.write(self._fd, key.encode())
            self.read(pause_s)

    def read(self, seconds: float) -> bool:
        """Take what the program writes for so long. Returns False when it has ended."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if not select.select([self._fd], [], [], left)[0]:
                continue
            try:
                data = os.read(self._fd, 65536)
            except OSError:  # Linux says so when the other side is closed
                data = b""
            if not data:
                return False
            self.write(self._decoder.decode(data))
        return True

    def until(self, is_there: Callable[[str], bool], limit_s: float = 180) -> None:
        """Wait until the screen shows something, and nothing on it has changed for STILL_S."""
        until, shown, since = time.monotonic() + limit_s, "", time.monotonic()
        while time.monotonic() < until:
            now = "\n".join(self._screen.display)
            if now != shown:
                shown, since = now, time.monotonic()
            if is_there(shown) and time.monotonic() - since >= STILL_S:
                return
            if not self.read(0.1):
                break
        raise SystemExit("The chat did not show what the demo waits for:\n" + shown)

    def end(self) -> None:
        """Wait for the end of the program."""
        while self.read(0.5):
            pass
        os.close(self._fd)


def new_screen() -> tuple[Any, Any]:
    """Return an empty screen and what writes on it."""
    import pyte

    screen = pyte.Screen(COLUMNS, ROWS)
    return screen, pyte.Stream(screen)


def is_answered(n_replies: int) -> Callable[[str], bool]:
    """Return a question to a screen: are so many replies there, and none being written?"""
    return lambda shown: shown.count("▌ smollm2-135m") == n_replies and "writing" not in shown and "tok/s" in shown


def run(models: str) -> list[Event]:
    """Chat, leave, and go on where it was; return all that was on the screen."""
    edge = str(Path(sys.executable).with_name("edge"))
    with tempfile.TemporaryDirectory() as folder:
        environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("EDGE_", "COLOR", "NO_COLOR"))},
            "TERM": "xterm-256color", "COLORTERM": "truecolor", "LANG": "C.UTF-8", "EDGE_MODELS_DIR": models,
            "EDGE_DATA_DIR": f"{folder}/data", "EDGE_CACHE_DIR": f"{folder}/cache", "EDGE_CONFIG": f"{folder}/config.toml",
            "EDGE_ENGINE_MEASURE": "false",
        }  # fmt: skip
        terminal = Terminal(environ)
        terminal.start(edge, "chat")
        terminal.until(lambda shown: "smollm2-135m" in shown and "loading" not in shown)
        terminal.type("What is the capital of France, and what is it famous for?\r")
        terminal.until(is_answered(1))
        terminal.read(1.0)
        terminal.type("\x11")
        terminal.end()
        terminal.start(edge, "chat", "-c")
        terminal.until(lambda shown: "Paris" in shown and "loading" not in shown)
        terminal.type("Which river runs through it?\r")
        terminal.until(is_answered(2))
        terminal.read(1.5)
        terminal.type("\x11")
        terminal.end()
        return terminal.events


def without_pauses(events: list[Event]) -> list[Event]:
    """Cut pauses that are longer than LONGEST_PAUSE_S."""
    shorter, cut, before = [], 0.0, 0.0
    for at, text in events:
        cut += max(0.0, at - before - LONGEST_PAUSE_S)
        shorter.append((at - cut, text))
        before = at
    return shorter


def write_cast(path: Path, events: list[Event]) -> None:
    """Write an asciicast, version 2."""
    header = {"version": 2, "width": COLUMNS, "height": ROWS, "title": "edge chat"}
    lines = [json.dumps(header), *(json.dumps([round(at, 3), "o", text], ensure_ascii=False) for at, text in events)]
    path.write_text("\n".join(lines) + "\n", "utf-8")


def frames_of(events: list[Event]) -> list[tuple[float, list[str]]]:
    """Return (seconds, rows as SVG) of every picture that differs from the one before."""
    screen, stream = new_screen()
    frames: list[tuple[float, list[str]]] = []
    for number, (at, text) in enumerate(events):
        stream.feed(text)
        is_last = number == len(events) - 1
        if not is_last and events[number + 1][0] - at < 0.02:  # one picture comes in several pieces
            continue
        if frames and at - frames[-1][0] < SHORTEST_FRAME_S and not is_last:
            continue
        rows = [row_svg(screen.buffer[row]) for row in range(ROWS)]
        if not frames or rows != frames[-1][1]:
            frames.append((at, rows))
    return frames


def row_svg(row: Any) -> str:
    """Return one row of the screen as SVG, at the top left corner."""
    parts: list[str] = []
    column = 0
    while column < COLUMNS:
        style, start, text = _style(row[column]), column, ""
        while column < COLUMNS and _style(row[column]) == style:
            text += row[column].data or ""
            column += 1
        ink, ground, is_bold, is_italic, is_underlined = style
        x, width = start * CELL_WIDTH, (column - start) * CELL_WIDTH
        if ground != GROUND:
            parts.append(f'<rect x="{x:.1f}" width="{width:.1f}" height="{CELL_HEIGHT + 0.5}" fill="{ground}"/>')
        if text.strip():
            marks = ' font-weight="700"' * is_bold + ' font-style="italic"' * is_italic
            marks += ' text-decoration="underline"' * is_underlined
            lead = len(text) - len(text.lstrip())
            shown = text.strip()
            parts.append(
                f'<text x="{x + lead * CELL_WIDTH:.1f}" y="13.5" fill="{ink}"{marks} '
                f'textLength="{len(shown) * CELL_WIDTH:.1f}">{escape(shown)}</text>'
            )
    return "".join(parts)


def _style(cell: Any) -> tuple[str, str, bool, bool, bool]:
    ink, ground = _colour(cell.fg, INK), _colour(cell.bg, GROUND)
    if cell.reverse:
        ink, ground = ground, ink
    return ink, ground, cell.bold, cell.italics, cell.underscore


def _colour(name: str, default: str) -> str:
    if name == "default":
        return default
    if re.fullmatch(r"[0-9a-f]{6}", name):
        return f"#{name}"
    return NAMED.get(name.removeprefix("bright"), default)


def write_svg(path: Path, frames: list[tuple[float, list[str]]]) -> None:
    """Write an animation: the pictures below each other, moved in steps behind a window. Equal rows are written once."""
    width, height = COLUMNS * CELL_WIDTH + 2 * MARGIN, ROWS * CELL_HEIGHT + 2 * MARGIN
    total = frames[-1][0] + LAST_FRAME_S
    known: dict[str, str] = {}
    pictures, steps = [], []
    for number, (at, rows) in enumerate(frames):
        offset = number * height
        uses = []
        for line, row in enumerate(rows):
            if row:
                name = known.setdefault(row, f"r{len(known)}")
                uses.append(f'<use href="#{name}" y="{offset + line * CELL_HEIGHT:.0f}"/>')
        pictures.append("".join(uses))
        steps.append(f"{100 * at / total:.3f}%{{transform:translateY({-offset:.0f}px)}}")
    rows_svg = "".join(f'<g id="{name}">{row}</g>' for row, name in known.items())
    last = (len(frames) - 1) * height
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" font-family="ui-monospace,SFMono-Regular,Menlo,Consolas,monospace" font-size="14">\n'
        f"<style>@keyframes play{{{''.join(steps)}100%{{transform:translateY({-last:.0f}px)}}}}"
        f".film{{animation:play {total:.1f}s step-end infinite}}text{{white-space:pre}}</style>\n"
        f"<title>edge chat: a question, the program closed and opened again, and the conversation goes on</title>\n"
        f'<defs>{rows_svg}<clipPath id="window"><rect width="{COLUMNS * CELL_WIDTH:.0f}" height="{ROWS * CELL_HEIGHT:.0f}"/>'
        f"</clipPath></defs>\n"
        f'<rect width="100%" height="100%" rx="8" fill="{GROUND}"/>\n'
        f'<g transform="translate({MARGIN:.0f} {MARGIN:.0f})" clip-path="url(#window)"><g class="film">\n'
        + "\n".join(pictures)
        + "\n</g></g></svg>\n",
        "utf-8",
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("where", type=Path, help="path of both files without their suffix")
    parser.add_argument("--cast", type=Path, default=None, help="draw this cast again instead of recording")
    options = parser.parse_args()
    cast = options.cast
    if cast is None:
        if shutil.which("edge", path=str(Path(sys.executable).parent)) is None:
            parser.error("edge is not installed beside this Python: make install-dev")
        import edge

        cast = options.where.with_suffix(".cast")
        write_cast(cast, without_pauses(run(str(edge.load_settings().paths.models_dir))))
    lines = cast.read_text("utf-8").splitlines()[1:]
    events = [(float(at), str(text)) for at, _, text in map(json.loads, lines)]
    write_svg(options.where.with_suffix(".svg"), frames_of(events))
    return 0


if __name__ == "__main__":
    sys.exit(main())
