"""Word documents (.docx): paragraphs, headings and tables, read as a stream within bounds; entities are refused."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from typing import IO, Any
from xml.parsers import expat

from edge.documents.base import Block
from edge.documents.readers import Unreadable
from edge.units import one_line

__all__ = ["read"]

_MOST_XML_BYTES = 256 << 20
_MOST_FILES = 10_000
_AT_ONCE = 1 << 16
_W = "http://schemas.openxmlformats.org/wordprocessingml/2006/main "
_TITLE = "http://purl.org/dc/elements/1.1/ title"
_MOST_DEPTH = 200


def read(data: bytes) -> tuple[str, Iterator[Block]]:
    """Return the paragraphs of a document. See `edge.documents.readers`."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except zipfile.BadZipFile:
        raise Unreadable("it is damaged, or not a Word document") from None
    names = set(archive.namelist())
    if "word/document.xml" not in names or len(names) > _MOST_FILES:
        raise Unreadable("it is not a Word document")
    styles, core = _Styles(), _Title()
    for name, handler in (("word/styles.xml", styles), ("docProps/core.xml", core)):
        if name in names:
            for _ in _parsed(archive, name, handler):
                pass
    return one_line(core.title), _blocks(archive, styles.levels)


def _blocks(archive: zipfile.ZipFile, levels: dict[str, int]) -> Iterator[Block]:
    body = _Body(levels)
    for _ in _parsed(archive, "word/document.xml", body):
        yield from body.take()
    yield from body.take()


class _Handler:
    """What happens at the parts of an XML file. Names are those of expat: namespace, blank, name."""

    def start(self, name: str, attributes: dict[str, str]) -> None: ...

    def end(self, name: str) -> None: ...

    def text(self, data: str) -> None: ...


def _parsed(archive: zipfile.ZipFile, name: str, handler: _Handler) -> Iterator[None]:
    """Parse a file of an archive, a part at each step."""
    parser = expat.ParserCreate(namespace_separator=" ")
    parser.buffer_text = True
    depth = 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > _MOST_DEPTH:
            raise Unreadable("it is nested too deeply")
        handler.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        handler.end(tag)

    def refuse(*_: Any) -> None:
        raise Unreadable("it declares entities, which a Word document does not")

    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, handler.text
    parser.StartDoctypeDeclHandler = refuse
    n_bytes = 0
    try:
        with archive.open(name) as file:
            for data in _parts(file):
                n_bytes += len(data)
                if n_bytes > _MOST_XML_BYTES:
                    raise Unreadable(f"it unpacks to more than {_MOST_XML_BYTES >> 20} MB")
                parser.Parse(data, False)
                yield
            parser.Parse(b"", True)
    except RuntimeError:  # what zipfile says of an encrypted entry
        raise Unreadable("it is encrypted with a password") from None
    except (expat.ExpatError, zipfile.BadZipFile, EOFError, NotImplementedError, OSError) as error:
        raise Unreadable(f"it is damaged ({name}: {one_line(str(error))[:80]})") from None


def _parts(file: IO[bytes]) -> Iterator[bytes]:
    yield from iter(lambda: file.read(_AT_ONCE), b"")


class _Styles(_Handler):
    """Styles of headings: id -> level, from 1."""

    def __init__(self) -> None:
        self.levels: dict[str, int] = {}
        self._style = ""

    def start(self, name: str, attributes: dict[str, str]) -> None:
        value = attributes.get(_W + "val", "")
        if name == _W + "style":
            self._style = attributes.get(_W + "styleId", "")
        elif name == _W + "name" and value.lower() == "title":
            self.levels[self._style] = 1
        elif name == _W + "name" and value.lower().startswith("heading ") and value[8:].isdecimal():
            self.levels[self._style] = int(value[8:])
        elif name == _W + "outlineLvl" and value.isdecimal() and int(value) < 9:
            self.levels.setdefault(self._style, int(value) + 1)


class _Title(_Handler):
    """The title that the document was given."""

    def __init__(self) -> None:
        self.title = ""
        self._is_inside = False

    def start(self, name: str, attributes: dict[str, str]) -> None:
        self._is_inside = name == _TITLE

    def end(self, name: str) -> None:
        self._is_inside = False

    def text(self, data: str) -> None:
        if self._is_inside:
            self.title = (self.title + data)[:1000]


class _Body(_Handler):
    """Paragraphs as blocks; a row of a table is one block."""

    def __init__(self, levels: dict[str, int]) -> None:
        self._levels = levels
        self._done: list[Block] = []
        self._path: list[tuple[int, str]] = []
        self._pieces: list[str] = []
        self._cells: list[str] = []
        self._level = 0
        self._n_rows = 0  # open ones: a table may be in a cell of another
        self._is_text = False

    def take(self) -> list[Block]:
        """Return the blocks that are finished, each once."""
        done, self._done = self._done, []
        return done

    def start(self, name: str, attributes: dict[str, str]) -> None:
        if name == _W + "t":
            self._is_text = True
        elif name in (_W + "tab", _W + "br", _W + "cr"):
            self._pieces.append(" " if name == _W + "tab" else "\n")
        elif name == _W + "noBreakHyphen":
            self._pieces.append("-")
        elif name == _W + "pStyle":
            self._level = self._levels.get(attributes.get(_W + "val", ""), 0)
        elif name == _W + "tr":
            self._n_rows += 1

    def end(self, name: str) -> None:
        if name == _W + "t":
            self._is_text = False
        elif name == _W + "p":
            self._end_paragraph()
        elif name == _W + "tr":
            self._n_rows -= 1
            if not self._n_rows and any(self._cells):
                self._add(" | ".join(cell for cell in self._cells if cell), 0)
            if not self._n_rows:
                self._cells = []

    def text(self, data: str) -> None:
        if self._is_text:
            self._pieces.append(data)

    def _end_paragraph(self) -> None:
        text = "\n".join(line.strip() for line in "".join(self._pieces).split("\n") if line.strip())
        level, self._pieces, self._level = self._level, [], 0
        if self._n_rows:
            self._cells.append(one_line(text))
        elif text:
            self._add(text, level)

    def _add(self, text: str, level: int) -> None:
        if level:
            self._path = [*(one for one in self._path if one[0] < level), (level, one_line(text))]
        self._done.append(Block(text, path=tuple(name for _, name in self._path), begins=bool(level)))
