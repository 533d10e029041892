"""Tables: every column is visible in every width, and no character of a cell is lost."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from textual.containers import ScrollableContainer

from edge.backends.fake import FakeBackend
from edge_chat.markup.document import render
from edge_chat.markup.lines import Line, Run
from edge_chat.markup.tables import Table, column_widths, is_narrowed, table_lines
from edge_chat.screens.wide import WideTable
from tests.chat_app import enter, eventually, fake_app, say, settle

CELLS = st.one_of(
    st.text(alphabet="ab XY09.,-é", max_size=40),
    st.text(alphabet="日本語のとても長い、。テキスト中文 한국어", max_size=24),
    st.text(alphabet="abc/:?=&%", max_size=90),  # nowhere to break
    st.sampled_from(["", "🎉 👍🏽 👨‍👩‍👧‍👦", "x" * 150, "1,000.50", "—"]),
)


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[list[str]], list[str]]:
    """Rows, the first of which is the head, and the alignment of the columns."""
    n_columns = draw(st.integers(1, 9))
    row = st.lists(CELLS, min_size=n_columns, max_size=n_columns)
    rows = draw(st.lists(row, min_size=1, max_size=6))
    aligns = draw(st.lists(st.sampled_from(["left", "center", "right"]), min_size=n_columns, max_size=n_columns))
    return rows, aligns


def made(rows: list[list[str]], aligns: list[str]) -> Table:
    cells = [tuple((Run(cell),) if cell else () for cell in row) for row in rows]
    return Table(cells[0], tuple(cells[1:]), tuple(aligns))


def letters(text: str) -> Counter[str]:
    return Counter(text.replace(" ", ""))


def shown(lines: list[Line]) -> str:
    """Return what stands on the screen of the table's own text."""
    return "".join(run.text for line in lines for run in line.runs if not run.is_decor)


@given(tables(), st.integers(20, 200))
def test_every_character_is_shown_in_every_width(given_table: tuple[list[list[str]], list[str]], width: int) -> None:
    rows, aligns = given_table
    lines = table_lines(made(rows, aligns), width)
    assert all(cell_len(line.text) <= width for line in lines)
    has_head = any(cell.strip() for cell in rows[0])
    once = letters("".join(cell for row in rows[0 if has_head else 1 :] for cell in row))
    head = letters("".join(cell + ":" for cell in rows[0] if cell.strip()))
    each = letters("".join(cell for row in rows[1:] for cell in row))
    as_records = each + Counter({letter: n * (len(rows) - 1) for letter, n in head.items()})
    assert letters(shown(lines)) in (once, as_records)


@given(tables(), st.integers(20, 200))
def test_no_column_is_too_narrow_to_be_read(given_table: tuple[list[list[str]], list[str]], width: int) -> None:
    rows, _ = given_table
    natural = [max(1, *(cell_len(row[i]) for row in rows)) for i in range(len(rows[0]))]
    words = [max(cell_len(word) for row in rows for word in (row[i] or " ").split(" ")) for i in range(len(rows[0]))]
    widths = column_widths(natural, words, width)
    if widths is not None:
        assert all(min(size, 3) <= has <= size for has, size in zip(widths, natural, strict=True))
        assert sum(widths) + 2 * (len(widths) - 1) <= width


@pytest.mark.parametrize("width", [20, 40, 60, 80, 100, 120, 200])
@pytest.mark.parametrize("plain", [False, True])
def test_the_cells_of_a_reply_are_all_there(width: int, plain: bool) -> None:
    text = """\
| # | A very long column heading | Another heading | C | D | E | F |
|---|:---:|---:|---|---|---|---|
| 1 | Lorem ipsum dolor sit amet, consectetur adipiscing elit | tempor | a | b | c | d |
| 2 | 日本語のとても長いテキストがここにあります | x | g | h | i | j |
| 3 | short | https://example.com/averyveryverylongurlthatcannotbewrappedanywhere | k | l | m | n |
"""
    seen = "".join(line.text for line in render(text, width, is_plain=plain)).replace(" ", "")
    for letter in "abcdghijklmn#CDEF":
        assert letter in seen
    assert letters(seen) >= letters("日本語のとても長いテキストがここにあります")
    assert letters(seen) >= letters("https://example.com/averyveryverylongurlthatcannotbewrappedanywhere")


def test_columns_that_fit_stay_as_they_are_and_long_ones_share_the_rest() -> None:
    text = """\
| # | Pros | Cons | Score |
|---|------|------|---|
| 1 | Very fast, easy to learn, with a large standard library and many packages for every purpose you may have | Slow at \
run time compared with compiled languages and heavy on memory in long-running servers | 8 |
"""
    lines = [line.text for line in render(text, 80)]
    assert lines[0].startswith("#  Pros") and lines[0].endswith("Score")
    assert len(lines) == 2 + 4  # four lines for each of two long cells, not fifteen for one


def test_numbers_stand_right_and_headings_over_them() -> None:
    lines = [line.text for line in render("| Item | Price |\n|:-:|--:|\n| Pear | 1.20 |\n| Fig | 1,000.50 |", 60)]
    assert lines == ["Item     Price", "────  ────────", "Pear      1.20", "Fig   1,000.50"]


def test_a_row_with_more_cells_than_the_head_loses_none() -> None:
    lines = [line.text for line in render("| a | b |\n|---|---|\n| 1 | 2 | 3 | x\\|y |\n| only |", 60)]
    assert lines[2].split() == ["1", "2", "3", "x|y"] and lines[3].split() == ["only"]


def test_ragged_rows_inside_quotes_and_lists() -> None:
    assert "3" in " ".join(line.text for line in render("> | a |\n> |---|\n> | 1 | 3 |", 60))
    assert "3" in " ".join(line.text for line in render("- x\n\n  | a |\n  |---|\n  | 1 | 3 |", 60))


def test_rows_become_records_where_words_do_not_fit() -> None:
    text = "| Country | Capital | Population | Currency | Languages |\n|---|---|---|---|---|\n" + (
        "| Switzerland | Bern | 8,700,000 | Swiss franc | German, French, Italian, Romansh |\n" * 2
    )
    lines = [line.text for line in render(text, 40)]
    assert lines[:3] == ["Country: Switzerland", "Capital: Bern", "Population: 8,700,000"]
    assert lines[4:6] == ["Languages: German, French, Italian,", "  Romansh"]
    assert lines[6] == "" and lines[7] == "Country: Switzerland"


def test_a_line_end_inside_a_cell() -> None:
    lines = [line.text for line in render("| a | b |\n|---|---|\n| one<br>two | x |", 60)]
    assert lines[2:] == ["one  x", "two"]


def test_plain_mode_draws_no_rule() -> None:
    lines = [line.text for line in render("| a | b |\n|---|---|\n| 1 | 2 |", 60, is_plain=True)]
    assert lines == ["a  b", "1  2"]


def test_a_wide_view_wraps_nothing() -> None:
    table = made([["a", "b"], ["x " * 100, "y"]], ["left", "left"])
    assert is_narrowed(table, 80) and not is_narrowed(table, 300)
    assert len(table_lines(table, None)) == 3


def test_the_tables_of_the_pages(tmp_path: Path) -> None:
    """A head without text is not drawn, and its rule is."""
    lines = [line.text for line in render("| | |\n| --- | --- |\n| flash attention | on |", 60)]
    assert lines == ["───────────────  ──", "flash attention  on"]


async def test_the_wide_view_opens_by_key_and_scrolls_by_keys() -> None:
    answer = "| # | Notes |\n|---|---|\n| 1 | " + "word " * 60 + "end |\n\n| a |\n|---|\n| last |"
    app = fake_app(lambda: FakeBackend(script=lambda message: answer, n_ctx=8192))
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await say(pilot, "x")
        await pilot.press("ctrl+up", "t")
        await eventually(pilot, lambda: isinstance(app.screen, WideTable))
        await pilot.press("escape")
        await eventually(pilot, lambda: not isinstance(app.screen, WideTable))
        await enter(pilot, "/table 1")
        await eventually(pilot, lambda: isinstance(app.screen, WideTable))
        box = app.screen.query_one(ScrollableContainer)
        await eventually(pilot, lambda: box.max_scroll_x > 200)
        await pilot.press("right")
        assert box.scroll_x == 8
        await pilot.press("end")
        assert box.scroll_x == box.max_scroll_x
        await pilot.pause()
        assert any("end" in strip.text for strip in app.screen._compositor.render_strips())
        await pilot.press("home")
        assert box.scroll_x == 0
