"""Documents in the chat: `@docs` and `@docs:NAME` in a message, and the passages below its answer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edge.citations import RECORD_KEY, read_citations
from edge_chat import format as fmt
from edge_chat.commands import Completion

if TYPE_CHECKING:
    from edge.conversation import Node

__all__ = ["is_mention", "propose_docs", "said_about", "take_docs", "with_docs"]

_NAME = r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}"
_MENTION = re.compile(rf"(?<!\S)@docs(?::({_NAME}))?(?![\w:/.-]*[\w/])")
_WORD = re.compile(rf"docs(?::{_NAME})?[.,;:!?)\]}}']*")


def take_docs(text: str) -> tuple[str, list[str]]:
    """Return a message without its mentions of documents, and the collections that they name, each once."""
    from edge.documents import DEFAULT_COLLECTION

    names = list(dict.fromkeys(found[1] or DEFAULT_COLLECTION for found in _MENTION.finditer(text)))
    if not names:
        return text, []
    without = re.sub(r"[ \t]{2,}", " ", _MENTION.sub("", text))
    return re.sub(r"[ \t]+(?=[.,;:!?])", "", without).strip(), names


def is_mention(path: str) -> bool:
    """Return whether what follows an @ names documents, and no file; a file of that name is @./docs."""
    return _WORD.fullmatch(path) is not None


def with_docs(node: Node) -> str:
    """Return a saved message as it was typed: with its mentions of documents in front."""
    if RECORD_KEY not in node.record:
        return node.content
    names = dict.fromkeys(one.collection for one in read_citations(node.record)[0])
    return " ".join([*(f"@docs:{name}" for name in names), node.content]) if names else f"@docs {node.content}"


def propose_docs(typed: str, folder: Path) -> list[Completion]:
    """Propose collections for what is typed behind an @. Blocks: it reads a directory.

    Args:
        typed: so far, without the @.
        folder: of all collections.
    """
    from edge.documents import DEFAULT_COLLECTION
    from edge.documents.collection import collection_names

    if not ("docs".startswith(typed) or typed.startswith("docs")) or not typed:
        return []
    words = [
        (f"docs:{name}" if name != DEFAULT_COLLECTION else "docs", name)
        for name in sorted(collection_names(folder), key=lambda name: (name != DEFAULT_COLLECTION, name))
    ]
    return [
        Completion(f"@{word}", word, "your documents" if name == DEFAULT_COLLECTION else f"documents: {name}")
        for word, name in words
        if word.startswith(typed) and word != typed
    ]


def said_about(record: Mapping[str, object]) -> str:
    """Return a line on what a question was searched in; "" if it was not."""
    if RECORD_KEY not in record:
        return ""
    new, again = read_citations(record)
    names = ", ".join(dict.fromkeys(fmt.clean(one.collection) for one in new))
    n_passages = len(new) + len(again)
    if not n_passages:
        return "Documents: nothing was found"
    return f"Documents: {fmt.plural(n_passages, 'passage')}" + (f" of {names}" if names else "")
