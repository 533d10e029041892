"""Readers of formats: what they see of a file, and where."""

from __future__ import annotations

import pytest

from edge.documents.base import Block
from edge.documents.readers import Unreadable, kind_of_file, reader
from tests.tiny_documents import make_docx, make_pdf


def read(kind: str, data: str | bytes) -> tuple[str, list[Block]]:
    title, blocks = reader(kind)(data.encode() if isinstance(data, str) else data)
    return title, list(blocks)


def places(blocks: list[Block]) -> list[tuple[str, int, int, tuple[str, ...]]]:
    return [(block.text, block.first, block.last, block.path) for block in blocks]


def test_text_is_split_at_blank_lines() -> None:
    _, blocks = read("text", "\r\none\r\ntwo\r\n \r\n\r\nthree")
    assert places(blocks) == [("one\ntwo", 2, 3, ()), ("three", 6, 6, ())]


def test_markdown_has_sections_lists_tables_and_code() -> None:
    page = """---
title: in front
---
# Kettle

Boil.

* one
  more of one
* two

## *Parts* of it

| a | b |
|---|---|
| 1 | 2 |

```
# no heading

code
```

Gasket
------
last
"""
    title, blocks = read("markdown", page)
    assert title == "Kettle"
    assert places(blocks) == [
        ("---\ntitle: in front\n---", 1, 3, ()),
        ("# Kettle", 4, 4, ("Kettle",)),
        ("Boil.", 6, 6, ("Kettle",)),
        ("* one\n  more of one", 8, 9, ("Kettle",)),
        ("* two", 10, 10, ("Kettle",)),
        ("## *Parts* of it", 12, 12, ("Kettle", "*Parts* of it")),
        ("| a | b |\n|---|---|\n| 1 | 2 |", 14, 16, ("Kettle", "*Parts* of it")),
        ("```\n# no heading\n\ncode\n```", 18, 22, ("Kettle", "*Parts* of it")),
        ("Gasket\n------", 24, 25, ("Kettle", "Gasket")),
        ("last", 26, 26, ("Kettle", "Gasket")),
    ]
    assert [block.first for block in blocks if block.begins] == [4, 12, 24]


PYTHON = """import heat

LIMIT = 100


# Boils water.
@heat.watched
class Kettle(Base):
    def boil(self, water):
        if water:
            return heat.up(water)

    async def cool(self):
        return None


def main() -> None:
    pass
"""


def test_code_is_split_at_definitions() -> None:
    _, blocks = read("code", PYTHON)
    assert [(block.first, block.last, block.path) for block in blocks] == [
        (1, 3, ()),
        (6, 8, ("Kettle",)),
        (9, 11, ("Kettle", "boil")),
        (13, 14, ("Kettle", "cool")),
        (17, 18, ("main",)),
    ]


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("pub(crate) async fn boil<T>(water: T) -> T {", "boil"),
        ("func (k *Kettle) Boil(water int) error {", "Boil"),
        ("export default async function boil(water) {", "boil"),
        ("export const boil = async (water) => {", "boil"),
        ("  public static final class Kettle extends Pot {", "Kettle"),
        ("static int *boil_water(struct water *w)", "boil_water"),
        ("void Kettle::boil(int n) {", "Kettle::boil"),
        ("interface Kettle<T> {", "Kettle"),
        ("impl<T> Kettle<T> {", "Kettle"),
        ("defmodule Tea.Kettle do", "Tea.Kettle"),
    ],
)
def test_definitions_of_many_languages_are_known(line: str, name: str) -> None:
    _, blocks = read("code", f"{line}\n  x\n")
    assert blocks[0].path == (name,)


@pytest.mark.parametrize(
    "line", ["return boil(water)", "if (hot) boil(water)", "boil(water);", "int n = boil(water);", "x" * 10_000]
)
def test_other_lines_define_nothing(line: str) -> None:
    assert read("code", line)[1][0].path == ()


def test_html_shows_what_a_browser_would() -> None:
    page = """<!DOCTYPE html>
<html><head><title>A &amp; B</title><style>p { color: red }</style></head>
<body><script>var a = "<p>no</p>";</script>
<h1>Kettle</h1>
<p>Boil <b>all</b> of
the&nbsp;water.<br>Then wait.
<ul><li>one<li>two</ul>
<h2>Parts</h2>
<table><tr><td>a</td><td>1</td></tr><tr><td>b<td>2</table>
<pre>x = 1

  y</pre>
<svg><text>no</text></svg>
"""
    title, blocks = read("html", page)
    assert title == "A & B"
    assert places(blocks) == [
        ("Kettle", 4, 4, ("Kettle",)),
        ("Boil all of the water.\nThen wait.", 5, 6, ("Kettle",)),
        ("one", 7, 7, ("Kettle",)),
        ("two", 7, 7, ("Kettle",)),
        ("Parts", 8, 8, ("Kettle", "Parts")),
        ("a | 1", 9, 9, ("Kettle", "Parts")),
        ("b | 2", 9, 9, ("Kettle", "Parts")),
        ("x = 1\n  y", 10, 12, ("Kettle", "Parts")),
    ]


def test_html_without_what_surrounds_its_main_part() -> None:
    page = """<h1>Site</h1><nav><a>Home</a></nav><div hidden><p>no</p><div>no</div></div><p>Hi<input hidden> there</p>"""
    assert [block.text for block in read("html", page)[1]] == ["Site", "Hi there"]
    _, blocks = read("html", f"<header>{page}</header>\n<main><h2>Part</h2>\n\n\n<p>Text</p></main><footer>end</footer>")
    assert [(block.text, block.path) for block in blocks] == [("Part", ("Part",)), ("Text", ("Part",))]
    from edge.documents.chunks import split

    assert [(chunk.text, chunk.first, chunk.last) for chunk in split(blocks, 100)] == [("Part\nText", 2, 5)]


def test_html_may_declare_its_encoding() -> None:
    page = '<meta charset="iso-8859-1"><p>Käse</p>'.encode("latin-1")
    assert read("html", page)[1][0].text == "Käse"
    assert read("html", page.replace(b"iso-8859-1", b"zip\x00"[:3]).replace(b"K\xe4se", b"cheese"))[1][0].text == "cheese"


def test_a_pdf_has_pages_and_an_outline() -> None:
    pages = [["Kettles", "boil water", "1"], ["Page 2 of 3", "and tea", "3.1 repair", "7", "It leaks."], ["The gasket"]]
    title, blocks = read("pdf", make_pdf(pages, title="Manual", outline={"Use": 0, "Repair": 1, "Parts": 2}))
    assert title == "Manual"
    assert [(block.text, block.page, block.path, block.begins) for block in blocks] == [
        ("Kettles", 1, ("Use",), True),
        ("boil water", 1, ("Use",), False),
        ("and tea", 2, ("Use",), True),
        ("3.1 repair", 2, ("Repair",), True),
        ("7", 2, ("Repair",), False),
        ("It leaks.", 2, ("Repair",), False),
        ("The gasket", 3, ("Parts",), True),
    ]


def test_a_word_document_has_headings_and_tables() -> None:
    data = make_docx(
        [
            ("Heading1", "Kettle"),
            ("", "Boil & wait."),
            ("Berschrift2", "Parts"),
            [["lid", "1"], ["gasket", "2"]],
            ("Own", "End"),
        ]
    )
    _, blocks = read("docx", data)
    assert [(block.text, block.path, block.begins) for block in blocks] == [
        ("Kettle", ("Kettle",), True),
        ("Boil & wait.", ("Kettle",), False),
        ("Parts", ("Kettle", "Parts"), True),
        ("lid | 1", ("Kettle", "Parts"), False),
        ("gasket | 2", ("Kettle", "Parts"), False),
        ("End", ("End",), True),
    ]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"caf\xe9", "not UTF-8 text"),
        (b"a\0b", "binary"),
        (b"\xff\xfea\0b", "not UTF-16 text"),
    ],
)
def test_other_encodings_are_refused(data: bytes, reason: str) -> None:
    with pytest.raises(Unreadable, match=reason):
        read("text", data)


def test_utf16_with_a_mark_is_read() -> None:
    assert read("text", "Käse\n".encode("utf-16"))[1][0].text == "Käse"


@pytest.mark.parametrize(
    ("name", "beginning", "kind"),
    [
        ("a.MD", b"# x", "markdown"),
        ("a.rs", b"fn", "code"),
        ("LICENSE", b"text", "text"),
        ("wrong.txt", b"%PDF-1.4", "pdf"),
        ("a.bin", b"\0\1", "it is a binary file"),
        ("a.docx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "it is encrypted, or of an old format (.doc, .xls)"),
        ("a.jar", b"PK\x03\x04\x14", "it is an archive"),
    ],
)
def test_the_kind_is_that_of_the_content(name: str, beginning: bytes, kind: str) -> None:
    from pathlib import Path

    assert kind_of_file(Path(name), beginning) == kind
