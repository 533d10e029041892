"""The ways in which `edge run` writes an answer: as text, as JSON lines, or only the code in it."""

from __future__ import annotations

from typing import Protocol

from edge.errors import EdgeError
from edge_cli import output

__all__ = ["Answer", "CodeOnly", "JsonLines", "Silent", "Text", "find_codes"]


class Answer(Protocol):
    """Writes an answer while it is generated."""

    def write(self, piece: str) -> None:
        """Take the next piece of text."""

    def think(self, piece: str) -> None:
        """Take the next piece of what the model thinks before it answers."""

    def end(self) -> None:
        """Finish what was written; also called when the answer ends early."""


class Text:
    """The text as it comes, without control characters; a line end at the end."""

    def __init__(self) -> None:
        self._last = "\n"

    def write(self, piece: str) -> None:
        if shown := output.plain(piece):
            output.piece(shown)
            self._last = shown[-1]

    def think(self, piece: str) -> None:
        pass  # the status line says so

    def end(self) -> None:
        if self._last != "\n":
            output.line()
            self._last = "\n"


class JsonLines:
    """A JSON object for every piece."""

    def write(self, piece: str) -> None:
        output.json_object({"type": "text", "text": piece}, compact=True)

    def think(self, piece: str) -> None:
        output.json_object({"type": "reasoning", "text": piece}, compact=True)

    def end(self) -> None:
        pass


class Silent:
    """Nothing; the caller writes all of it at the end."""

    def write(self, piece: str) -> None:
        pass

    def think(self, piece: str) -> None:
        pass

    def end(self) -> None:
        pass


class CodeOnly(Silent):
    """Nothing while it is generated, and the first code block of the whole answer with `show`."""

    def show(self, text: str) -> None:
        """Write the first code block of an answer.

        Raises:
            EdgeError: there is none; the answer has been written to stderr then.
        """
        codes = find_codes(text)
        if not codes:
            output.note(output.plain(text).strip())
            raise EdgeError("The answer, which is above, has no code block.", 'Ask for one: "... Answer with one code block."')
        output.piece(output.plain(codes[0]))
        if len(codes) > 1:
            output.note(f"This is the first of {len(codes)} code blocks; without --extract you see all of them.")


def find_codes(text: str) -> list[str]:
    """Return the texts of the fenced code blocks of a Markdown text, with a line end each."""
    from markdown_it import MarkdownIt

    tokens = MarkdownIt("commonmark").parse(text)
    return [
        token.content if token.content.endswith("\n") else token.content + "\n" for token in tokens if token.type == "fence"
    ]
