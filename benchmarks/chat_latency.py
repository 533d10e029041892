"""Measure the time from a key to the screen in `edge chat`, while the model is idle, prefills and decodes.

Runs the installed command in a pseudo-terminal with the real model and measures from writing a key to the terminal's input
to reading that character from its output. Every key is a letter that appears nowhere else on the screen. Also measured:
from the start of the process to the first frame.

    python benchmarks/chat_latency.py [--model PATH_OR_NAME] [--tokens 4000] [--markdown docs/chat-latency.md]
"""

from __future__ import annotations

import argparse
import fcntl
import os
import pty
import random
import select
import statistics
import struct
import sys
import tempfile
import termios
import time
from dataclasses import dataclass, field
from pathlib import Path

EDGE = Path(sys.executable).with_name("edge")
WORDS = ["the", "river", "runs", "over", "stones", "and", "under", "old", "bridges", "while", "people", "walk", "along", "it"]
LETTERS = [chr(code) for start, end in ((0x3B1, 0x3C9), (0x430, 0x44F), (0x561, 0x586)) for code in range(start, end)]
LIMIT_S = 600.0
IS_WRITING = "writing · Esc"  # above the reply; the side bar says "writing" as soon as the prompt is read
PAUSE_S = 0.15  # between two keys, as of somebody who types fast


@dataclass
class Chat:
    """The app in a terminal of its own.

    Attributes:
        output: everything it has written.
    """

    fd: int
    pid: int
    output: bytearray = field(default_factory=bytearray)

    @classmethod
    def start(cls, environ: dict[str, str], arguments: list[str]) -> Chat:
        """Run `edge chat` in a terminal of 140 by 40, wide enough for the side bar and the whole status line."""
        pid, fd = pty.fork()
        if pid == 0:
            os.execve(EDGE, [str(EDGE), "chat", *arguments], environ)
        fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 140, 0, 0))
        return cls(fd, pid)

    def send(self, text: str) -> None:
        """Type."""
        os.write(self.fd, text.encode())

    def read(self, timeout_s: float) -> None:
        """Return the output so far, after waiting so long for it."""
        ready, _, _ = select.select([self.fd], [], [], timeout_s)
        if ready:
            self.output += os.read(self.fd, 65536)

    def wait_for(self, text: str, start: int = 0) -> float:
        """Read until a text appears behind position `start`, and return the time at which it was there."""
        wanted, deadline = text.encode(), time.perf_counter() + LIMIT_S
        while wanted not in self.output[start:]:
            if time.perf_counter() > deadline:
                raise TimeoutError(f"{text!r} did not appear.")
            self.read(1.0)
        return time.perf_counter()

    def key_times(self, letters: list[str], until: str | None, start: int) -> list[float]:
        """Type letters one by one and measure each.

        Args:
            letters: to type.
            until: stop when this has been written behind `start`.

        Returns:
            Milliseconds from key to screen.
        """
        times = []
        for letter in letters:
            if until is not None and until.encode() in self.output[start:]:
                break
            position = len(self.output)
            began = time.perf_counter()
            self.send(letter)
            times.append((self.wait_for(letter, position) - began) * 1000)
            pause_end = time.perf_counter() + PAUSE_S
            while (left := pause_end - time.perf_counter()) > 0:
                self.read(left)
        return times

    def clear_line(self) -> None:
        """Empty the composer."""
        self.send("\x15")
        time.sleep(0.5)
        self.read(0.1)

    def close(self) -> None:
        """Leave the app."""
        self.send("\x11")
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                self.read(0.2)
            except OSError:
                break  # the terminal is closed with the app
        os.waitpid(self.pid, 0)


def describe(name: str, times: list[float]) -> str:
    """Return a row of the table."""
    if not times:
        return f"| {name} | 0 | – | – | – |"
    ordered = sorted(times)
    p95 = ordered[min(len(ordered) - 1, round(0.95 * (len(ordered) - 1)))]
    return f"| {name} | {len(times)} | {statistics.median(times):.0f} ms | {p95:.0f} ms | {max(times):.0f} ms |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", default=os.environ.get("EDGE_TEST_MODEL") or "smollm2-135m")
    parser.add_argument("--tokens", type=int, default=4000, help="length of the prompt in words, about as many tokens")
    parser.add_argument("--markdown", type=Path, help="write the table there too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), options.model, options.tokens)
    table = "\n".join(rows) + "\n"
    print(table)
    if options.markdown:
        options.markdown.write_text(table)


def measure(folder: Path, model: str, n_tokens: int) -> list[str]:
    """Start the app and type while the model is idle, prefills and decodes."""
    prompt = folder / "prompt.txt"
    rng = random.Random(1)
    prompt.write_text(" ".join(rng.choice(WORDS) for _ in range(n_tokens)))
    environ = {
        **{key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES", "NO_COLOR")},
        "EDGE_DATA_DIR": str(folder / "data"),
        "EDGE_CONFIG": str(folder / "config.toml"),
        "EDGE_SAMPLING_MAX_TOKENS": "300",
        "EDGE_ENGINE_MEASURE": "false",
        "TERM": "xterm-256color",
    }
    environ.pop("EDGE_TEST_MODEL", None)
    began = time.perf_counter()
    chat = Chat.start(environ, ["-m", model])
    first_frame_s = chat.wait_for("nter send") - began
    chat.wait_for("is ready")
    half = len(LETTERS) // 3
    idle = chat.key_times(LETTERS[:half], None, 0)
    chat.clear_line()
    start = len(chat.output)
    chat.send(f"Summarise @{prompt} ")
    time.sleep(1)
    chat.send("\x1b")  # the popup of file names
    time.sleep(0.5)
    chat.send("\r")
    chat.wait_for("reading", start)
    reading = chat.key_times(LETTERS[half : 2 * half], IS_WRITING, start)
    chat.wait_for(IS_WRITING, start)
    chat.clear_line()
    position = len(chat.output)
    writing = chat.key_times(LETTERS[2 * half :], "reused", position)
    chat.close()
    load = os.getloadavg()[0]
    return [
        f"First frame after {first_frame_s:.2f} s. {os.cpu_count()} CPUs, load {load:.1f}, prompt of {n_tokens:,} words.",
        "",
        "| While the model | Keys | Median | 95 % | Slowest |",
        "| --- | ---: | ---: | ---: | ---: |",
        describe("is idle", idle),
        describe("reads the prompt", reading),
        describe("writes the reply", writing),
    ]


if __name__ == "__main__":
    main()
