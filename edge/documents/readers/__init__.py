"""A file format each, as blocks: text.py, code.py, markdown.py, html.py, pdf.py, docx.py; these run in a child process.

A reader is a function `read(data: bytes) -> tuple[str, Iterable[Block]]`: a title, "" if the file has none, and the blocks.
It raises `Unreadable` with the end of a sentence. encoding.py turns bytes into text.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from pathlib import Path

from edge.documents.base import Block

__all__ = ["KINDS", "Read", "Unreadable", "kind_of_file", "largest_bytes", "reader"]

Read = Callable[[bytes], tuple[str, Iterable[Block]]]

KINDS = {
    "text": 32 << 20,
    "code": 8 << 20,
    "markdown": 8 << 20,
    "html": 16 << 20,
    "pdf": 256 << 20,
    "docx": 64 << 20,
}
"""Kind -> most bytes of a file. Each is a module of this package."""

_SUFFIXES = {
    "markdown": ".md .markdown .mdown .mkd .qmd",
    "html": ".html .htm .xhtml",
    "pdf": ".pdf",
    "docx": ".docx",
    "code": """.py .pyi .js .mjs .cjs .ts .tsx .jsx .java .kt .kts .scala .groovy .go .rs .c .h .cc .cpp .cxx .hh .hpp .cs
        .m .mm .swift .rb .php .pl .pm .lua .r .jl .dart .ex .exs .erl .hs .ml .fs .vb .sh .bash .zsh .fish .ps1 .sql .proto
        .zig .nim .f90 .f95 .v .sv .vhd .tcl .el .clj .lisp .scm""",
}
_KIND_OF = {suffix: kind for kind, suffixes in _SUFFIXES.items() for suffix in suffixes.split()}
_OLD_OFFICE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"


class Unreadable(Exception):
    """The file has nothing that can be read; its text says why, as the end of a sentence: "it is damaged"."""


def kind_of_file(path: Path, beginning: bytes) -> str:
    """Return the kind of a file, or why it cannot be read: a text that begins with "it ".

    Args:
        path: its name.
        beginning: its first bytes.
    """
    kind = _KIND_OF.get(path.suffix.lower(), "")
    if beginning.startswith(b"%PDF-"):
        return "pdf"
    if beginning.startswith(_OLD_OFFICE):
        return "it is encrypted, or of an old format (.doc, .xls)" if kind == "docx" else "it is of an old office format"
    if kind in ("pdf", "docx"):
        return kind
    if beginning.startswith(b"PK\x03\x04"):
        return "it is an archive"
    is_utf16 = beginning.startswith((b"\xff\xfe", b"\xfe\xff"))
    if b"\0" in beginning and not is_utf16:
        return "it is a binary file"
    return kind or "text"


def largest_bytes(kind: str) -> int:
    """Return the most bytes that a file of a kind may have."""
    return KINDS[kind]


def reader(kind: str) -> Read:
    """Return the reader of a kind.

    Raises:
        ImportError: it needs a package that is not installed.
    """
    read: Read = importlib.import_module(f"edge.documents.readers.{kind}").read
    return read
