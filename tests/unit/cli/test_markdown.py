"""Markdown on a terminal while it is generated: a small terminal, written here, ends up with the lines of the whole text."""

from __future__ import annotations

import io
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_cli import markdown, output
from edge_cli.app import App

SAMPLE = """# Title

A paragraph with **bold** words, `code` and a [link](https://example.org/a) that is long enough to wrap on narrow terminals.

1. one
   - nested, and long enough to be wrapped as well, with some more words
2. two

| Name | Price | Note |
|:-----|------:|------|
| a | 1.20 | short |
| much longer name | 1,000.50 | a note that makes the column wider than it was before |

```python
def f(x):
    return x + 1
```

> quoted

Last words: $x^2$.
"""


class Screen:
    """A terminal that knows what edge sends: line ends, carriage return, cursor up, erase a line's end. No colours."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.lines, self.row, self.column = [""], 0, 0

    def write(self, text: str) -> None:
        for part in re.findall(r"\x1b\[[0-9;]*[A-Za-z]|\x1b\]8;[^\x1b]*\x1b\\|[\s\S]", text):
            if part == "\n":
                self.row, self.column = self.row + 1, 0
                if self.row == len(self.lines):
                    self.lines.append("")
            elif part == "\r":
                self.column = 0
            elif part.endswith("A") and len(part) > 1:
                top = max(0, len(self.lines) - self.height)
                assert self.row - int(part[2:-1]) >= top, "a line that has scrolled away cannot be reached"
                self.row -= int(part[2:-1])
            elif part == "\x1b[K":
                self.lines[self.row] = self.lines[self.row][: self.column]
            elif not part.startswith("\x1b"):
                line = self.lines[self.row]
                self.lines[self.row] = line[: self.column].ljust(self.column) + part + line[self.column + 1 :]
                self.column += 1
                assert output.cell_width(self.lines[self.row]) < self.width, "the line would be wrapped by the terminal"

    @property
    def shown(self) -> list[str]:
        lines = [line.rstrip() for line in self.lines]
        assert not any(lines[self.row :]), "nothing is left below the cursor"
        return lines[: self.row + 1]


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Return a function that streams a text in pieces to a screen of a size, and returns its lines."""

    def run(text: str, width: int, height: int, size: Callable[[], int]) -> list[str]:
        screen = Screen(width, height)
        monkeypatch.setattr(output, "piece", screen.write)
        monkeypatch.setattr(output, "terminal_width", lambda stream: width)
        monkeypatch.setattr(markdown, "_height", lambda: height)
        monkeypatch.setattr(markdown, "_REDRAW_S", 0.0)
        answer = markdown.Markdown()
        at = 0
        while at < len(text):
            n = size()
            answer.write(text[at : at + n])
            at += n
        answer.end()
        return screen.shown

    return run


def whole(text: str, width: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(output, "terminal_width", lambda stream: width)
    lines = [re.sub(r"\x1b\[[0-9;]*m|\x1b\]8;[^\x1b]*\x1b\\", "", line).rstrip() for line in markdown.render(text)]
    return [*lines, ""]


@pytest.mark.parametrize("width", [24, 40, 80, 200])
@pytest.mark.parametrize("height", [50, 200])
@pytest.mark.parametrize("n", [1, 3, 17, 10_000])
def test_a_streamed_answer_ends_as_the_whole_text_looks(
    stream: Any, width: int, height: int, n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert stream(SAMPLE, width, height, lambda: n) == whole(SAMPLE, width, monkeypatch)


def test_a_long_table_is_written_whole_though_only_its_end_fits_on_the_screen(
    stream: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = "".join(f"| {'n' * (i % 9 + 1)} | row {i} |\n" for i in range(60))
    text = f"Before.\n\n| a | b |\n|---|---|\n{rows}\nAfter."
    assert stream(text, 60, 10, lambda: 7) == whole(text, 60, monkeypatch)


def test_long_code_and_paragraphs_scroll_by(stream: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "```\n" + "".join(f"line {i}\n" for i in range(80)) + "```\n"
    words = " ".join(f"word{i}" for i in range(600))
    for text in (code, words, f"{code}\n{words}\n\n{code}"):
        assert stream(text, 60, 10, lambda: 11) == whole(text, 60, monkeypatch)


def test_any_pieces_on_a_small_screen_reach_the_end_and_lose_no_word(stream: Any) -> None:
    chance = random.Random(3)
    for _ in range(30):
        shown = " ".join(stream(SAMPLE, chance.choice([30, 61]), chance.randint(6, 12), lambda: chance.randint(1, 40)))
        for word in ("Title", "bold", "nested,", "1,000.50", "return", "quoted", "x²"):
            assert word in shown


def test_control_characters_of_a_model_never_reach_the_terminal(stream: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []
    text = (
        "a \x1b[2J b \x1b]0;title\x07 c \x9b31m `\x1b[5m` [l](https://x.org/\x1b[8m) [k](javascript:a)\n\n```\n\x1b[3A\n```\n"
    )
    monkeypatch.setattr(output, "piece", sent.append)
    monkeypatch.setattr(markdown, "_REDRAW_S", 0.0)
    answer = markdown.Markdown()
    for character in text:
        answer.write(character)
    answer.end()
    left = re.sub(r"\x1b\[[0-9;]*m|\x1b\[\d+A\r|\x1b\[K|\x1b\]8;;(?:https://[!-~]*)?\x1b\\", "", "".join(sent))
    assert "\x1b" not in left
    assert not set(left) & {"\x07", "\x9b"}
    assert "]8;;javascript" not in "".join(sent)


def test_colours_follow_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "**bold** and `code`"
    monkeypatch.delenv("NO_COLOR", raising=False)
    markdown._codes.cache_clear()
    assert "\x1b[33mcode" in markdown.render(text)[0]
    monkeypatch.setenv("NO_COLOR", "1")
    markdown._codes.cache_clear()
    [line] = markdown.render(text)
    assert "\x1b[33m" not in line
    assert "\x1b[1mbold" in line
    markdown._codes.cache_clear()


@pytest.mark.parametrize(
    ("arguments", "term", "is_drawn"), [([], "xterm", True), (["--raw"], "xterm", False), ([], "dumb", False)]
)
def test_a_terminal_gets_markdown_and_everything_else_the_text(
    call: Any,
    fake_app: Callable[..., App],
    terminal: Any,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    term: str,
    is_drawn: bool,
) -> None:
    app = fake_app(script=lambda _: "# Title\n\n**bold**")
    assert call("run", *arguments, "hi", app=app).out == "# Title\n\n**bold**\n"
    screen = terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("TERM", term)
    assert call("run", *arguments, "hi", app=app).code == 0
    assert ("**bold**" in screen.written()) is not is_drawn
    assert "bold" in screen.written()


def test_a_long_page_is_drawn(stream: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[3] / "docs" / "cli.md").read_text(encoding="utf-8")
    assert stream(text, 100, 400, lambda: 200) == whole(text, 100, monkeypatch)


@pytest.mark.parametrize(("encoding", "expected"), [("ascii", r"$\sqrt{2}$"), ("utf-8", "√2")])
def test_formulas_follow_the_encoding_of_the_terminal(encoding: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    assert whole(r"$\sqrt{2}$", 60, monkeypatch)[0].strip() == expected
