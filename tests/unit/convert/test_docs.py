"""docs/convert.md says what the code does."""

from __future__ import annotations

from pathlib import Path

from edge_convert.architectures import markdown_table, refusals_table

PAGE = Path(__file__).parents[3] / "docs/convert.md"


def test_the_table_of_architectures_is_the_one_in_the_code() -> None:
    page = PAGE.read_text(encoding="utf-8")
    shown = page.split("markdown_table() -->\n")[1].split("<!-- end of table -->")[0]
    assert shown == markdown_table()


def test_the_table_of_refused_families_is_the_one_in_the_code() -> None:
    page = PAGE.read_text(encoding="utf-8")
    shown = page.split("refusals_table() -->\n")[1].split("<!-- end of table -->")[0]
    assert shown == refusals_table()
