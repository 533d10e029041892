from __future__ import annotations

import pytest
from rich.cells import cell_len

from edge_chat.commands import Completion
from edge_chat.widgets.columns import lay_out

CHOICES = [
    Completion("a", "alpha", "the first letter of all", ("98 MB", "135M"), aside="F3"),
    Completion("b", "beta, a longer name", "", ("1.1 GB",)),
    Completion("c", "γάμμα 漢字", "wide", ("1", "22")),
]


@pytest.mark.parametrize("width", [12, 20, 30, 40, 60, 90])
@pytest.mark.parametrize("in_use", [None, "a"])
def test_no_line_is_longer_than_the_list(width: int, in_use: str | None) -> None:
    for line in lay_out(CHOICES, width, in_use=in_use):
        assert cell_len(str(line)) <= width, str(line)


def test_columns_are_aligned_and_the_aside_is_at_the_edge() -> None:
    lines = [str(line) for line in lay_out(CHOICES, 70, in_use="a")]
    assert lines[0].startswith("● alpha ") and lines[1].startswith("  beta")
    assert lines[0].endswith("F3") and cell_len(lines[0]) == 70
    assert (
        len({cell_len(line[: line.index(end) + len(end)]) for line, end in zip(lines, ("98 MB", "1.1 GB", " 1"), strict=True)})
        == 1
    )
    assert "the first letter of all" in lines[0]
    assert str(lay_out(CHOICES, 70, in_use="a", is_plain=True)[0]).startswith("* alpha")


def test_what_goes_first_where_there_is_little_room() -> None:
    assert "first letter" not in str(lay_out(CHOICES, 40)[0]) and "135M" in str(lay_out(CHOICES, 40)[0])
    assert "135M" not in str(lay_out(CHOICES, 32)[0]) and "98 MB" in str(lay_out(CHOICES, 32)[0])
    assert "F3" in str(lay_out(CHOICES, 12)[0])
    assert lay_out([], 40) == []
