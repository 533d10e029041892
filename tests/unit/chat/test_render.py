"""Blocks of Markdown as lines, and text that grows."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_chat.markup import document as documents
from edge_chat.markup import render as renderer
from edge_chat.markup.document import Document, render
from edge_chat.markup.lines import Line, Run, plain_text, runs_len, wrap
from edge_chat.markup.render import Options
from edge_chat.markup.styles import STYLES
from edge_chat.widgets.lines import LOOKS

TEXT = """\
# Title

A paragraph with **bold** text[^1]
and a second line.

## Section
### Part
- [ ] open
- [x] done
  1. inner

> quoted `code`

| a | b |
|---|--:|
| 1 | 2 |

```diff
-old line
+new line
```

$$
x^2
$$

---

[^1]: The *footnote*.
"""


def drawn(text: str, width: int = 40, *, is_plain: bool = False) -> list[str]:
    return [line.text for line in render(text, width, is_plain=is_plain)]


def styles(text: str, part: str, width: int = 40) -> str:
    """Return the style of the run that holds a text."""
    return next(run.style for line in render(text, width) for run in line.runs if part in run.text)


def test_everything_at_once() -> None:
    assert drawn(TEXT) == [
        "Title",
        "━━━━━",
        "",
        "A paragraph with bold text¹",
        "and a second line.",
        "",
        "Section",
        "",
        "Part",
        "☐ open",
        "☑ done",
        "  1. inner",
        "",
        "▎ quoted code",
        "",
        "a  b",
        "─  ─",
        "1  2",
        "",
        " diff",
        " -old line",
        " +new line",
        "",
        "  x²",
        "",
        "─" * 40,
        "",
        "¹ The footnote.",
    ]


def test_plain_mode_draws_nothing() -> None:
    lines = drawn(TEXT, is_plain=True)
    assert not set("".join(lines)) & set("━─▎☐☑•◦▪↪")
    assert "# Title" in lines and "[x] done" in lines and "Code, diff:" in lines and "+new line" in lines


def test_headings_differ_without_colour() -> None:
    looks = [STYLES[styles(f"{'#' * level} Text", "Text")] for level in (1, 2, 3, 4)]
    assert len(set(looks[1:])) == 3
    assert drawn("# Text") != drawn("## Text")
    assert drawn("### Text\nbody") == ["Text", "body"] and drawn("## Text\nbody") == ["Text", "", "body"]


def test_diffs_are_red_and_green() -> None:
    assert styles(TEXT, "-old") == "code code-removed" and styles(TEXT, "+new") == "code code-added"


def test_wrapped_code_is_marked_and_indented() -> None:
    assert drawn("```\n    // a very very very long comment\n```", 30)[1:] == [
        "     // a very very very long",
        "     ↪ comment",
    ]


def test_loose_lists_have_room_and_tight_ones_have_none() -> None:
    assert drawn("- a\n- b") == ["• a", "• b"]
    assert drawn("- a\n\n- b") == ["• a", "", "• b"]
    assert drawn("1. a\n\n   b\n2. c") == ["1. a", "", "   b", "", "2. c"]
    assert drawn("9. a\n10. b") == [" 9. a", "10. b"]


def test_wrapped_items_hang() -> None:
    assert drawn("- one two three four five", 12) == ["• one two", "  three four", "  five"]


@pytest.mark.parametrize(
    "text", ["", "\n", "[a]: http://b", "x" * 500, "> " * 30 + "deep", "- " * 30 + "deep", "<b>html</b>", "&amp;"]
)
@pytest.mark.parametrize("width", [1, 8, 40])
def test_odd_texts(text: str, width: int) -> None:
    render(text, width)


def test_every_style_has_a_look() -> None:
    assert set(STYLES) <= set(LOOKS)
    names = {name for line in render(TEXT, 40) for run in line.runs for name in f"{run.style} {line.fill}".split()}
    assert names <= set(STYLES)


WORDS = st.lists(st.sampled_from([*"ab cd é日本語、。", "👍🏽", "e\u0301", "https://a.b/c?d"]), max_size=40).map("".join)


@given(st.lists(WORDS, min_size=1, max_size=5), st.integers(2, 60), st.integers(0, 1))
def test_wrapping_loses_no_character(texts: list[str], width: int, hanging: int) -> None:
    runs = [Run(text) for text in texts if text]
    lines = wrap(runs, width, hanging)
    copied = "".join(run.text if run.copied is None else run.copied for line in lines for run in line)
    assert copied == plain_text(runs)
    if width - hanging >= 2:
        assert all(runs_len(line) <= width - (hanging if number else 0) for number, line in enumerate(lines))


def test_ideographs_wrap_anywhere_but_not_before_a_full_stop() -> None:
    assert [plain_text(line) for line in wrap([Run("日本語。日本語。")], 6)] == ["日本", "語。日", "本語。"]


def test_text_that_grows_ends_up_as_the_whole() -> None:
    expected = render(TEXT, 50)
    chosen = random.Random(4)
    for _ in range(5):
        document = Document(Options())
        end = 0
        while end < len(TEXT):
            end += chosen.randint(1, 9)
            document.set_text(TEXT[:end], is_whole=False)
            document.lines(50)
        document.set_text(TEXT)
        assert document.lines(50) == expected


def test_only_the_last_block_is_parsed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[int] = []
    parser = documents._parser()
    parse = parser.parse

    def counting(source: str) -> object:
        parsed.append(len(source))
        return parse(source)

    monkeypatch.setattr(parser, "parse", counting)
    text = "A paragraph of some length.\n\n" * 200
    document = Document(Options())
    document.set_text(text + "The last", is_whole=False)
    first: list[Line] = document.lines(40)
    parsed.clear()
    for end in range(20):
        document.set_text(text + "The last" + " word" * end, is_whole=False)
        lines = document.lines(40)
        assert lines[0] is first[0]  # nor drawn again
    assert max(parsed) < 200


def test_long_code_that_grows_is_not_coloured_again_line_by_line(monkeypatch: pytest.MonkeyPatch) -> None:
    coloured: list[int] = []
    colour = renderer.code_runs

    def counting(code: str, language: str) -> list[list[Run]]:
        coloured.append(code.count("\n"))
        return colour(code, language)

    monkeypatch.setattr(renderer, "code_runs", counting)
    lines = [f"value_{number} = {number}  # a comment" for number in range(300)]
    text = "```python\n" + "\n".join(lines)
    document = Document(Options(is_redrawn=True))
    document.set_text(text, is_whole=False)
    document.lines(60)
    coloured.clear()
    for end in range(20):
        document.set_text(text + "x" * end, is_whole=False)
        growing = document.lines(60)
    assert max(coloured) < 50
    document.set_text(text + "x" * 19)
    assert document.lines(60) == growing


def test_the_lines_need_no_screen() -> None:
    """`edge run` uses them where textual is not installed."""
    code = (
        "import sys, edge_chat.markup.document as d; d.render('# a\\n\\n```py\\nx\\n```', 40)\nprint('textual' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
