"""The styles that lines refer to by name."""

from __future__ import annotations

__all__ = ["STYLES"]

STYLES: dict[str, str] = {
    "strong": "bold",
    "em": "italic",
    "struck": "strike",
    "link": "underline",
    "faint": "dim",
    "heading1": "bold",
    "heading2": "bold underline",
    "heading3": "bold",
    "heading4": "bold italic",
    "bullet": "cyan",
    "quote": "",
    "quote-bar": "dim",
    "rule": "dim",
    "table-head": "bold",
    "footnote": "cyan",
    "maths": "",
    "action": "dim",
    "code": "",
    "code-inline": "yellow",
    "code-head": "dim",
    "code-copy": "",
    "code-wrap": "dim",
    "code-comment": "dim",
    "code-error": "red",
    "code-keyword": "magenta",
    "code-number": "cyan",
    "code-string": "green",
    "code-builtin": "blue",
    "code-function": "yellow",
    "code-class": "bold yellow",
    "code-heading": "bold",
    "code-added": "green",
    "code-removed": "red",
}
"""Name -> its look in the terminal's own 16 colours, as rich writes styles. The chat has colours of its own for each name."""
