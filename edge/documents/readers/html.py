"""HTML pages: the text that a browser would show, below its headings, with the lines of the source.

Navigation is left out; where a page says which part is the main one, the rest is, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser

from edge.documents.base import Block
from edge.documents.readers.encoding import decode
from edge.units import one_line

__all__ = ["read"]

_SILENT = frozenset({"script", "style", "template", "noscript", "svg", "math", "iframe", "object", "select", "canvas", "nav"})
_NAMES = """a abbr b bdi bdo big button cite code data del dfn em font i img input ins kbd label mark meter output q rp rt
    ruby s samp small span strike strong sub sup time tt u var wbr"""
_INLINE = frozenset(_NAMES.split())
"""Elements within a paragraph; all others end it."""
_VOID = frozenset({"br", "hr", "img", "input", "wbr", "meta", "link", "col", "embed", "source", "track", "area", "base"})
_CELLS = frozenset({"td", "th"})
_HEADING = re.compile(r"h[1-6]")
_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([\w.:-]{1,40})", re.IGNORECASE)
_DECLARED_BYTES = 4096


def read(data: bytes) -> tuple[str, Iterator[Block]]:
    """Return the blocks of a page. See `edge.documents.readers`."""
    declared = _CHARSET.search(data[:_DECLARED_BYTES])
    parser = _Page()
    parser.feed(decode(data, declared[1].decode("ascii") if declared else ""))
    parser.close()
    parser.end_block()
    return parser.title or parser.first_heading, iter(parser.main_blocks or parser.blocks)


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.title = self.first_heading = ""
        self.blocks: list[Block] = []
        self.main_blocks: list[Block] = []
        self._n_main = 0  # open ones
        self._path: list[tuple[int, str]] = []
        self._pieces: list[str] = []
        self._first = self._last = 0
        self._silent = ""  # the element whose content is not shown
        self._depth = 0  # of elements of that name within it
        self._is_title = False
        self._n_pre = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._silent:
            self._depth += tag == self._silent
        elif tag in _SILENT or (tag not in _VOID and any(name == "hidden" for name, _ in attrs)):
            self._silent, self._depth = tag, 1
        elif tag == "title":
            self._is_title = not self.title
        elif tag == "br":
            self._pieces.append("\n")
        elif tag in _CELLS:
            if any(piece.strip() for piece in self._pieces):
                self._pieces.append(" | ")
        elif tag not in _INLINE:
            self.end_block()
            self._n_pre += tag == "pre"
            if tag == "main":
                self._n_main += 1
                self._path = []

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _VOID or tag not in _SILENT:
            self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        if self._silent:
            self._depth -= tag == self._silent
            if not self._depth:
                self._silent = ""
        elif tag == "title":
            self._is_title = False
        elif tag not in _INLINE and tag not in _CELLS:
            self.end_block(heading=int(tag[1]) if _HEADING.fullmatch(tag) else 0)
            self._n_pre = max(0, self._n_pre - (tag == "pre"))
            self._n_main = max(0, self._n_main - (tag == "main"))

    def handle_data(self, data: str) -> None:
        if self._is_title:
            self.title = one_line(f"{self.title} {data}")
            return
        if self._silent or not data:
            return
        if data.strip():
            blank = len(data) - len(data.lstrip())
            line = self.getpos()[0]
            self._first = self._first or line + data.count("\n", 0, blank)
            self._last = line + data.rstrip().count("\n")
        self._pieces.append(data if self._n_pre else re.sub(r"\s+", " ", data))

    def end_block(self, heading: int = 0) -> None:
        """Finish the paragraph that was begun."""
        text = "".join(self._pieces)
        lines = (line.rstrip() if self._n_pre else " ".join(line.split()) for line in text.split("\n"))
        text = "\n".join(line for line in lines if line.strip())
        self._pieces = []
        if text.strip():
            if heading:
                name = one_line(text)
                self._path = [*(one for one in self._path if one[0] < heading), (heading, name)]
                self.first_heading = self.first_heading or name
            names = tuple(name for _, name in self._path)
            block = Block(text, self._first, self._last, path=names, begins=bool(heading), is_verbatim=False)
            self.blocks.append(block)
            if self._n_main:
                self.main_blocks.append(block)
        self._first = self._last = 0
