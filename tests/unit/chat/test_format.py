from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from edge_chat import format as fmt


def test_numbers() -> None:
    assert fmt.plural(1, "message") == "1 message"
    assert fmt.plural(2000, "message") == "2,000 messages"
    assert fmt.rate(34.21) == "34.2 tok/s"
    assert fmt.rate(1234.5) == "1234 tok/s"


def test_one_line_is_never_longer_than_asked() -> None:
    assert fmt.one_line("a\n b\tc", 10) == "a b c"
    assert fmt.one_line("abcdef", 6) == "abcdef"
    assert fmt.one_line("abcdefg", 6) == "abcde…"
    assert fmt.one_line("", 3) == ""


@pytest.mark.parametrize(
    ("days", "group"),
    [
        (0, "Today"),
        (1, "Yesterday"),
        (3, "Last 7 days"),
        (6, "Last 7 days"),
        (7, "Last 30 days"),
        (29, "Last 30 days"),
        (400, "Older"),
    ],
)
def test_days(days: int, group: str) -> None:
    now = datetime(2026, 3, 5, 12, 0)
    assert fmt.day_group((now - timedelta(days=days)).timestamp(), now.timestamp()) == group


def test_control_characters_cannot_reach_the_terminal() -> None:
    shown = fmt.clean("a\x1b[31mred\x07\x9b2J\x7f\x00")
    assert shown == "a␛[31mred␇�2J␡␀"
    assert not any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 for c in shown)


def test_line_ends_are_those_that_markdown_knows() -> None:
    text = "a\r\nb\x0bc\x0cd\x85e\u2028f\u2029g\x1ch"
    assert fmt.clean(text).splitlines() == fmt.clean(text).split("\n")
