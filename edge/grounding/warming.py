"""Beginnings of prompts over a collection that are worth prefilling ahead, and how they are prefilled."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from edge.citations import Citation, frame
from edge.grounding.choose import PassageLike, key_of
from edge.grounding.sources import orders_of
from edge.kv.records import WARM_OWNER

if TYPE_CHECKING:
    from edge.assistant import Assistant
    from edge.documents import Collection
    from edge.kv.store import BlockStore
    from edge.reply import Reply

__all__ = ["Start", "note_start", "owner_of", "release", "starts_of", "warm_start"]

Start: TypeAlias = tuple[Citation, ...]
"""The passages that a prompt begins with."""

_SHARE_OF_ORDERS = 4  # of the beginnings, so many are whole orders of earlier prompts: one in four


def owner_of(name: str) -> str:
    """Return the owner of the KV blocks that were prefilled ahead for a collection."""
    return f"{WARM_OWNER}docs:{name}"


def starts_of(collection: Collection, most: int) -> list[Start]:
    """Return beginnings of prompts: those of earlier prompts that came more than once, the most frequent first, then each
    passage alone, those that were asked for most often first.

    Args:
        collection: the collection.
        most: beginnings at most.
    """
    passages: dict[str, PassageLike] = {
        key_of(passage): passage for document in collection.documents() for passage in collection.passages(document.document_id)
    }
    orders = orders_of(collection)
    chosen = [order for order in orders.frequent if passages.keys() >= set(order)][: most // _SHARE_OF_ORDERS]
    first = {order[0] for order in chosen}
    singles = dict.fromkeys(key for key in (*orders.popular, *passages) if key in passages and key not in first)
    keys = [*chosen, *([key] for key in singles)][:most]
    return [tuple(_citation(number, collection.name, passages[key]) for number, key in enumerate(order, 1)) for order in keys]


def warm_start(ai: Assistant, collection: Collection, start: Start, *, system: str | None = None, pins: bool = True) -> Reply:
    """Begin to prefill a beginning of prompts, making way for replies.

    Args:
        ai: the model, with a KV cache on the disk.
        collection, start: see `starts_of`.
        system: the system prompt of the prompts to come; None is the assistant's.
        pins: the blocks are never evicted.
    """
    name = owner_of(collection.name).removeprefix(WARM_OWNER)
    return ai.prewarm(frame(start), system=system, name=name, cache="keep" if pins else "disk")


def note_start(collection: Collection, start: Start) -> None:
    """Remember that a beginning is in the KV cache, so that later prompts begin so."""
    orders_of(collection).note([key_of(one) for one in start])


def release(blocks: BlockStore, name: str, *, forgets: bool = False) -> None:
    """Unpin what was prefilled ahead for a collection.

    Args:
        blocks: the KV cache on the disk.
        name: of the collection.
        forgets: also delete it, as far as nobody else uses it.

    Raises:
        StorageError: the disk cannot be read or written.
    """
    owner = owner_of(name)
    for block in blocks.ls(owner=owner):
        blocks.unpin(bytes.fromhex(block.key))
    blocks.flush(60.0)
    if forgets:
        blocks.forget(owner)


def _citation(number: int, collection: str, passage: PassageLike) -> Citation:
    return Citation(number, str(passage.document), passage.text, heading=passage.heading, collection=collection)
