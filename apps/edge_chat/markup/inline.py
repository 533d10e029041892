"""Text inside a block: tokens of markdown-it to styled runs."""

from __future__ import annotations

import re
from collections.abc import Sequence

from markdown_it.token import Token

from edge_chat.markup.lines import Run
from edge_chat.markup.maths import to_unicode
from edge_chat.markup.maths_symbols import SUPERSCRIPTS

__all__ = ["footnote_mark", "formula_run", "inline_runs", "keep_latex"]

_STYLES = {"em_open": "em", "strong_open": "strong", "s_open": "struck"}
_CLOSERS = {"$$": "$$", "\\(": "\\)", "\\[": "\\]", "$": "$"}
_BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)


def inline_runs(tokens: Sequence[Token], style: str = "") -> list[Run]:
    """Return the text of inline tokens; a "\\n" alone in a run is a line end.

    Args:
        tokens: children of an "inline" token.
        style: names of styles that all of it has.
    """
    runs: list[Run] = []
    styles = [style] if style else []
    links: list[str] = []

    def add(text: str, extra: str = "", copied: str | None = None) -> None:
        if text:
            names = " ".join([*styles, *(["link"] if links else []), *([extra] if extra else [])])
            runs.append(Run(text, names, links[-1] if links else "", copied))

    for token in tokens:
        kind = token.type
        if kind == "text":
            _add_text(token.content, add)
        elif kind in ("hardbreak", "softbreak"):
            add("\n")
        elif kind == "code_inline":
            add(token.content, "code-inline")
        elif kind == "math_inline":
            text, extra, copied = formula_run(token.content, token.markup)
            add(text, extra, copied)
        elif kind == "footnote_ref":
            add(footnote_mark(token.info), "footnote", f"[^{token.info}]")
        elif kind in _STYLES:
            styles.append(_STYLES[kind])
        elif kind == "link_open":
            links.append(str(token.attrs.get("href", "")))
        elif kind == "link_close":
            links.pop()
        elif kind == "image":
            links.append(str(token.attrs.get("src", "")))
            add(f"Image: {token.content or token.attrs.get('src', '')}")
            links.pop()
        elif kind.endswith("_close"):
            styles.pop()
        else:
            _add_text(token.content, add)  # html_inline, text_special: whatever a newer parser knows
    return runs


def _add_text(text: str, add: object) -> None:
    assert callable(add)
    for number, part in enumerate(_BREAK.split(text)):
        if number:
            add("\n")
        add(re.sub(r"[ \t]+", " ", part))


def formula_run(source: str, opener: str) -> tuple[str, str, str]:
    """Return a formula in a text: what to show, its style, and what a selection copies: the LaTeX."""
    whole = f"{opener}{source}{_CLOSERS[opener]}"
    text = to_unicode(source)
    flat = re.sub(r"\s+", " ", whole)
    return (text, "maths", whole) if text is not None else (flat, "code-inline", whole)


def keep_latex(token: Token) -> None:
    """Turn formulas into code, for terminals without the characters to draw them with."""
    for part in (token, *(token.children or ())):
        if part.type == "math_block":
            part.content = ""
        elif part.type == "math_inline":
            part.type, part.content = "code_inline", f"{part.markup}{part.content}{_CLOSERS[part.markup]}"


def footnote_mark(label: str) -> str:
    """Return the mark of a footnote: "¹", or "[note]" for a name."""
    if label.isdecimal() and label.isascii():
        return "".join(SUPERSCRIPTS[digit] for digit in label)
    return f"[{label}]"
