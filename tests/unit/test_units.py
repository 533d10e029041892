"""Sizes and durations as text."""

from __future__ import annotations

import pytest

from edge.units import duration_text, one_line, reason, size_text


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (98_374_112, "98.4 MB"),
        (999_940_000, "999.9 MB"),
        (999_960_000, "1.0 GB"),
        (25 * 10**9, "25.0 GB"),
        (3 * 10**15, "3000.0 TB"),
        (-1500, "-1.5 kB"),
    ],
)
def test_sizes_are_decimal(n_bytes: int, text: str) -> None:
    assert size_text(n_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0.00 s"), (0.314, "0.31 s"), (9.996, "10 s"), (59.4, "59 s"), (59.6, "1 min"), (300, "5 min"), (5400, "1.5 h")],
)
def test_durations_are_as_exact_as_worth_reading(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_why_something_failed_is_said_without_numbers_and_words_of_python() -> None:
    assert reason(FileNotFoundError(2, "No such file or directory", "/x")) == "No such file or directory"
    assert reason(OSError("odd")) == "odd"
    assert reason(UnicodeDecodeError("utf-8", b"a\xff", 1, 2, "invalid start byte")) == "not UTF-8 text, at byte 1"
    assert reason(ValueError("two")) == "two"


def test_a_name_from_outside_controls_neither_a_terminal_nor_the_direction_of_text() -> None:
    assert one_line(" a\x1b[31m\nb\u2028c\u202etxt.exe\x9b \u2066d ") == "a [31m b c txt.exe d"
    assert one_line("Ünï-模型 №1") == "Ünï-模型 №1"
