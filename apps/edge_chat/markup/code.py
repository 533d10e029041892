"""Colours of code: pygments' tokens as names of styles."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from edge_chat.markup.lines import Run

__all__ = ["code_runs"]

_TAB = "    "


@lru_cache(maxsize=1)
def _names() -> dict[Any, str]:
    """Return pygments' type of a token -> name of its style. A type that is not listed takes that of its parent."""
    from pygments.token import Token  # type: ignore[import-untyped]

    return {
        Token: "",
        Token.Comment: "code-comment",
        Token.Error: "code-error",
        Token.Generic.Deleted: "code-removed",
        Token.Generic.Inserted: "code-added",
        Token.Generic.Heading: "code-heading",
        Token.Generic.Subheading: "code-heading",
        Token.Generic.Strong: "strong",
        Token.Generic.Emph: "em",
        Token.Generic.Error: "code-error",
        Token.Generic.Output: "code-comment",
        Token.Keyword: "code-keyword",
        Token.Literal.Number: "code-number",
        Token.Literal.String: "code-string",
        Token.Name.Attribute: "code-function",
        Token.Name.Builtin: "code-builtin",
        Token.Name.Class: "code-class",
        Token.Name.Decorator: "code-builtin",
        Token.Name.Exception: "code-class",
        Token.Name.Function: "code-function",
        Token.Name.Tag: "code-builtin",
        Token.Operator.Word: "code-keyword",
    }


def code_runs(code: str, language: str) -> list[list[Run]]:
    """Return the lines of a text in a programming language, coloured.

    Args:
        code: the text.
        language: its name as pygments knows it; any other leaves the text in one colour.
    """
    lines: list[list[Run]] = [[]]
    for style, text in _tokens(code, language):
        for number, part in enumerate(text.split("\n")):
            if number:
                lines.append([])
            for index, piece in enumerate(part.split("\t")):
                if index:
                    lines[-1].append(Run(_TAB, style, copied="\t"))
                if piece:
                    lines[-1].append(Run(piece, style))
    return lines


def _tokens(code: str, language: str) -> list[tuple[str, str]]:
    """Return (style, text) of the tokens, which together are the text."""
    lexer = _lexer(language.lower())
    if lexer is None:
        return [("", code)]
    tokens: list[tuple[str, str]] = []
    for kind, text in lexer.get_tokens(code):
        style = _style(kind)
        if tokens and tokens[-1][0] == style:
            tokens[-1] = (style, tokens[-1][1] + text)
        else:
            tokens.append((style, text))
    if tokens and tokens[-1][1].endswith("\n") and not code.endswith("\n"):
        tokens[-1] = (tokens[-1][0], tokens[-1][1][:-1])  # pygments adds a line end
    if "".join(text for _, text in tokens) != code:
        return [("", code)]  # a lexer that changes the text
    return tokens


@lru_cache(maxsize=64)
def _lexer(language: str) -> Any:
    from pygments.lexers import get_lexer_by_name  # type: ignore[import-untyped]
    from pygments.util import ClassNotFound  # type: ignore[import-untyped]

    if not language:
        return None
    try:
        return get_lexer_by_name(language, stripnl=False, ensurenl=True, tabsize=0)
    except ClassNotFound:
        return None


@lru_cache(maxsize=512)
def _style(kind: Any) -> str:
    names = _names()
    while kind not in names:
        kind = kind.parent
    return names[kind]
