"""PDF files through PDFium: the text of each page, below the entries of the outline. Scanned pages have none."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from edge.documents.base import Block
from edge.documents.readers import Unreadable
from edge.units import one_line

__all__ = ["read"]

_MOST_PAGES = 20_000
_MOST_ENTRIES = 20_000  # of an outline
_DEEPEST = 3
_PAGE_NUMBER = re.compile(r"(?:page |[-–—] ?)?(?:\d{1,5}|[ivxlc]{1,8})(?: ?[-–—]| of \d{1,5}| ?/ ?\d{1,5})?", re.IGNORECASE)


def read(data: bytes) -> tuple[str, Iterator[Block]]:
    """Return the lines of each page. See `edge.documents.readers`."""
    import pypdfium2

    try:
        pdf = pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        if "assword" in str(error):
            raise Unreadable("it is encrypted with a password") from None
        raise Unreadable("it is damaged, or not a PDF file") from None
    n_pages = len(pdf)
    if n_pages > _MOST_PAGES:
        raise Unreadable(f"it has {n_pages:,} pages, and {_MOST_PAGES:,} are read at most")
    title = one_line(pdf.get_metadata_value("Title"))
    return title, _blocks(pdf, n_pages, _outline(pdf))


def _outline(pdf: Any) -> dict[int, list[tuple[int, str]]]:
    """Return page, from 0 -> (level, title) of the entries that point to it."""
    found: dict[int, list[tuple[int, str]]] = {}
    for number, entry in enumerate(pdf.get_toc(max_depth=_DEEPEST)):
        if number >= _MOST_ENTRIES:
            break
        target = entry.get_dest()
        page, name = target.get_index() if target else None, one_line(entry.get_title())
        if page is not None and name:
            found.setdefault(page, []).append((entry.level, name))
    return found


def _blocks(pdf: Any, n_pages: int, outline: dict[int, list[tuple[int, str]]]) -> Iterator[Block]:
    path: list[tuple[int, str]] = []
    has_text = False
    for index in range(n_pages):
        lines = list(_lines(pdf, index))
        entries = _places(lines, outline.get(index, ()))
        begins = True
        for number, line in enumerate(lines):
            for level, name in entries.get(number, ()):
                path = [*(one for one in path if one[0] < level), (level, name)]
                begins = True
            yield Block(line, page=index + 1, path=tuple(name for _, name in path), begins=begins)
            begins, has_text = False, True
    if not has_text:
        raise Unreadable("it holds no text, only pictures of pages; text recognition (OCR) makes a PDF with text of it")


def _places(lines: list[str], entries: Sequence[tuple[int, str]]) -> dict[int, list[tuple[int, str]]]:
    """Return index of a line -> entries of the outline that begin there: a line ends with their name, else the last one."""
    found: dict[int, list[tuple[int, str]]] = {}
    at = 0
    for level, name in entries:
        wanted = name.casefold()
        matching = (number for number in range(at, len(lines)) if one_line(lines[number]).casefold().endswith(wanted))
        at = next(matching, at)
        found.setdefault(at, []).append((level, name))
    return found


def _lines(pdf: Any, index: int) -> Iterator[str]:
    """Yield the lines of a page without its number; a word that is divided at the end of a line is put together."""
    page = pdf[index]
    try:
        text_page = page.get_textpage()
        try:
            # U+FFFE is PDFium's sign of a divided word, U+0002 that of older versions.
            text = text_page.get_text_bounded().replace("\r\n", "\n").replace("\ufffe\n", "").replace("\x02\n", "")
        finally:
            text_page.close()
    finally:
        page.close()
    lines = [line.strip() for line in text.replace("\ufffe", "").replace("\0", "").split("\n") if line.strip()]
    for number, line in enumerate(lines):
        if number not in (0, len(lines) - 1) or not _PAGE_NUMBER.fullmatch(line):
            yield line
