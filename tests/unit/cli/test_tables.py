"""Tables: their headings in a pipe, the last column that wraps under itself, and commands that can be copied."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest

from edge_cli import output

ROWS = [("model", "10 MB", "weights of a model that was trained for a long time"), ("x", "2 kB", "/a/path/" + "long" * 20)]
HEADINGS = ("name", "size", "about it")


@pytest.fixture
def narrow(terminal: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Return a function that returns the lines of a table on a terminal of 40 columns without colours."""

    def table(*arguments: Any) -> list[str]:
        screen = terminal()
        monkeypatch.setattr(output, "terminal_width", lambda stream: 40)
        monkeypatch.setenv("NO_COLOR", "1")
        monkeypatch.setattr(sys, "stdout", screen)
        output.table(*arguments)
        lines: list[str] = screen.written().splitlines()
        return lines

    return table


def test_the_last_column_wraps_under_itself_between_words(narrow: Callable[..., list[str]]) -> None:
    assert narrow(ROWS, HEADINGS) == [
        "name   size   about it",
        "model  10 MB  weights of a model that",
        "              was trained for a long",
        "              time",
        "x      2 kB   /a/path/" + "long" * 20,
    ]


def test_a_table_in_a_pipe_has_its_headings_and_a_row_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(ROWS, HEADINGS)
    assert capsys.readouterr().out.splitlines() == [
        "name   size   about it",
        "model  10 MB  weights of a model that was trained for a long time",
        "x      2 kB   /a/path/" + "long" * 20,
    ]
    output.wide_table(("model", "speed", "never"), [("a", "1", ""), ("b", "", "")], 2)
    assert capsys.readouterr().out.splitlines() == ["model  speed", "a      1", "b      -"]


def test_wide_characters_count_twice_and_are_wrapped(narrow: Callable[..., list[str]]) -> None:
    lines = narrow([("日本", "a"), ("b", "一二三四五六七八九十" * 3)])
    assert lines[0] == "日本  a"
    assert lines[1].startswith("b     一二")
    assert all(output.cell_width(line) <= 40 for line in lines)
    assert "".join(lines[1:]).replace(" ", "") == "b" + "一二三四五六七八九十" * 3


def test_a_column_without_room_goes_below_its_row(narrow: Callable[..., list[str]]) -> None:
    rows = [("n" * 20, "1 GB", "here, and described in many words"), ("b", "2 GB", "there")]
    assert narrow(rows, ("name", "size", "where it is")) == [
        "name                  size",
        "    where it is",
        "nnnnnnnnnnnnnnnnnnnn  1 GB",
        "    here, and described in many words",
        "b                     2 GB",
        "    there",
    ]
    fits = [("n" * 30, "short")]
    assert narrow(fits) == ["n" * 30 + "  short"]


def test_columns_that_do_not_fit_side_by_side_are_blocks(narrow: Callable[..., list[str]]) -> None:
    rows = [("n" * 20, "gguf Q4_1", "98.4 MB", "", "here, and described in many words"), ("b", "onnx", "2 GB", "slow", "there")]
    assert narrow(rows, ("name", "format", "size", "speed", "where it is")) == [
        "nnnnnnnnnnnnnnnnnnnn",
        "  format: gguf Q4_1",
        "  size: 98.4 MB",
        "  where it is: here, and described in",
        "    many words",
        "b",
        "  format: onnx",
        "  size: 2 GB",
        "  speed: slow",
        "  where it is: there",
    ]


def test_headings_are_bold_on_a_terminal(terminal: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    output.table(ROWS, HEADINGS)
    assert "\x1b[1m" in screen.written().splitlines()[0]


@pytest.mark.parametrize(("text", "width"), [("", 5), ("one", 5), ("one two three", 5), ("  spaced   out ", 4), ("x" * 9, 4)])
def test_wrapping_loses_nothing(text: str, width: int) -> None:
    assert " ".join(output.wrap(text, width)).split() == text.split()
