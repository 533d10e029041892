from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from rich.cells import cell_len

from edge.conversation import ConversationInfo
from edge_chat import format as fmt
from edge_chat.widgets.rows import Row, make_rows

NOW = datetime(2026, 3, 5, 18, 0)
LONG = "Summarise the following text about the history of bread"


def info(id: str, title: str, updated: datetime = NOW, draft: str = "") -> ConversationInfo:
    return ConversationInfo(id, title, "", "", None, draft, 0.0, updated.timestamp(), 1)


def rows(*infos: ConversationInfo, width: int = 27, is_plain: bool = False) -> list[Row]:
    return list(make_rows(infos, now=NOW.timestamp(), width=width, is_plain=is_plain).values())


def test_a_row_has_the_title_and_the_time() -> None:
    assert rows(info("a", "Bread", NOW - timedelta(minutes=7))) == [Row("", "Bread", "17:53")]


def test_a_fork_is_marked_in_front_where_the_end_is_cut_off() -> None:
    one, two, three = rows(info("a", LONG), info("b", f"{LONG} (fork)"), info("c", f"{LONG} (fork 2)"))
    assert (one.fork, two.fork, three.fork) == ("", "↳ ", "↳2 ")
    assert two.title.startswith("Summarise") and "fork" not in two.title
    assert [row.fork for row in rows(info("b", f"{LONG} (fork)"), info("c", "x (fork 2)"), is_plain=True)] == [
        "fork: ",
        "fork 2: ",
    ]


def test_titles_that_are_cut_where_they_differ_show_the_difference() -> None:
    shown = rows(info("a", f"{LONG} in Rome"), info("b", f"{LONG} in Egypt"), info("c", "Bread"))
    assert "Rome" in shown[0].title and "Egypt" in shown[1].title and shown[2].title == "Bread"


def test_the_same_title_in_the_same_minute_shows_seconds() -> None:
    one, two = rows(info("a", "Bread", NOW - timedelta(seconds=5)), info("b", "Bread", NOW - timedelta(seconds=9)))
    assert (one.when, two.when) == ("17:59:55", "17:59:51")


def test_the_same_title_on_the_same_day_of_last_week_shows_the_time_of_day() -> None:
    day = NOW - timedelta(days=4)
    one, two = rows(info("a", "Bread", day), info("b", "Bread", day - timedelta(hours=2)))
    assert (one.when, two.when) == ("1 Mar 18:00:00", "1 Mar 16:00:00")


def test_a_conversation_that_is_found_twice_does_not_differ_from_itself() -> None:
    assert rows(info("a", "Bread"), info("a", "Bread")) == [Row("", "Bread", "18:00")]


@pytest.mark.parametrize("title", [LONG, "日本語の長いタイトルがここにあります", "a" * 100, "", "🍞" * 40])
@pytest.mark.parametrize("width", [12, 27, 40])
def test_a_row_fits_its_line(title: str, width: int) -> None:
    for row in rows(info("a", title), info("b", f"{title} (fork)"), info("c", f"{title}x"), width=width):
        assert cell_len(row.fork) + cell_len(row.title) + 1 + cell_len(row.when) <= max(width, 18)


def test_a_conversation_without_title_shows_its_draft() -> None:
    assert rows(info("a", "", draft="hello there"), info("b", ""))[0].title == "Draft: hello there"


@pytest.mark.parametrize(
    ("passed", "short"),
    [
        (timedelta(minutes=3), "17:57"),
        (timedelta(days=1), "18:00"),
        (timedelta(days=3), "Mon"),
        (timedelta(days=20), "13 Feb"),
        (timedelta(days=400), "2025-01-29"),
        (timedelta(seconds=-5), "now"),
    ],
)
def test_short_times(passed: timedelta, short: str) -> None:
    assert fmt.short_time((NOW - passed).timestamp(), NOW.timestamp()) == short
