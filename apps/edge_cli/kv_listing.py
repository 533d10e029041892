"""What `edge kv` shows of the block store, and which blocks of it are meant by what is typed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_cli.text import size

if TYPE_CHECKING:
    from edge.config import Settings
    from edge.kv.records import BlockInfo
    from edge.kv.store import BlockStore
    from edge_cli.app import App

__all__ = [
    "BLOCK_HEADINGS", "GROUP_HEADINGS", "Group", "block_rows", "fingerprint_here", "grouped", "keys_of", "owners", "seconds",
    "titles",
]  # fmt: skip

GROUP_HEADINGS = ("what", "tokens", "size", "saves", "last used", "")
BLOCK_HEADINGS = ("key", "position", "tokens", "size", "saves", "last used", "made by", "used by", "")
_TITLE_CHARS = 48
_KEY = re.compile("[0-9a-f]{8,64}")


@dataclass(frozen=True)
class Group:
    """Blocks that the same conversations use.

    Attributes:
        title: what it is, for people.
        conversations: ids of the conversations that use them, those of the user's first.
        n_blocks, n_tokens: how much it is.
        size_bytes: of its files.
        prefill_ms: what computing it took.
        last_used: unix seconds.
        n_pinned: how many of the blocks are pinned.
    """

    title: str
    conversations: tuple[str, ...]
    n_blocks: int
    n_tokens: int
    size_bytes: int
    prefill_ms: float
    last_used: float
    n_pinned: int

    def row(self, now: float) -> tuple[str, ...]:
        """As a line of a table."""
        pinned = "" if not self.n_pinned else "pinned" if self.n_pinned == self.n_blocks else "pinned in part"
        return (
            self.title,
            f"{self.n_tokens:,}",
            size(self.size_bytes),
            seconds(self.prefill_ms),
            ago(now - self.last_used),
            pinned,
        )


def grouped(blocks: Sequence[BlockInfo], titles: Mapping[str, str]) -> list[Group]:
    """Each block once, with those that are used by the same conversations; largest first.

    Args:
        blocks: as `BlockStore.ls` gives them.
        titles: id -> title of the conversations that there are. All others count as one.
    """
    members: dict[tuple[tuple[str, ...], bool, bool], list[BlockInfo]] = {}
    for block in blocks:
        known = tuple(owner for owner in block.owners if owner in titles)
        has_others = len(known) < len(block.owners)
        members.setdefault((known, has_others, block.namespace == "answers"), []).append(block)
    groups = [
        Group(
            title=_title(known, titles, has_others, is_answers),
            conversations=known,
            n_blocks=len(found),
            n_tokens=sum(block.n_tokens for block in found),
            size_bytes=sum(block.size_bytes for block in found),
            prefill_ms=sum(block.prefill_ms for block in found),
            last_used=max(block.last_used for block in found),
            n_pinned=sum(block.is_pinned for block in found),
        )
        for (known, has_others, is_answers), found in members.items()
    ]
    return sorted(groups, key=lambda group: (-group.size_bytes, group.title))


def _title(known: Sequence[str], titles: Mapping[str, str], has_others: bool, is_answers: bool) -> str:
    if is_answers:
        return "answers that are given again (kv.answers)"
    names = [f"{_short(titles[id])} ({id})" for id in known]
    if has_others:
        names.append("conversations that are not kept")
    if not names:
        return "used by no conversation"
    if len(names) == 1:
        return names[0]
    more = f" and {len(names) - 2:,} more" if len(names) > 2 else ""
    return f"shared: {', '.join(names[:2])}{more}"


def _short(title: str) -> str:
    line = " ".join(title.split()) or "no title"
    return line if len(line) <= _TITLE_CHARS else line[: _TITLE_CHARS - 1] + "…"


def block_rows(blocks: Sequence[BlockInfo], now: float) -> list[tuple[str, ...]]:
    """Every block as a line of a table."""
    return [
        (
            block.key[:12], f"{block.start:,}", f"{block.n_tokens:,}", size(block.size_bytes), seconds(block.prefill_ms),
            ago(now - block.last_used), block.origin, ", ".join(block.owners) or "-", "pinned" if block.is_pinned else "",
        )
        for block in blocks
    ]  # fmt: skip


def seconds(ms: float) -> str:
    """A time that is saved."""
    if ms < 60_000:
        return f"{ms / 1000:.1f} s"
    return f"{ms / 60_000:.0f} min" if ms < 3_600_000 else f"{ms / 3_600_000:.1f} h"


def ago(seconds_ago: float) -> str:
    """How long something is past. A clock that was set back gives "just now"."""
    for limit, length, unit in ((3600, 60, "min"), (86_400, 3600, "h"), (float("inf"), 86_400, "days")):
        if seconds_ago < limit:
            count = int(max(0.0, seconds_ago) // length)
            return (
                "just now" if unit == "min" and count == 0 else f"{count} {unit if count != 1 or unit != 'days' else 'day'} ago"
            )
    raise AssertionError


def titles(app: App, settings: Settings) -> dict[str, str]:
    """The user's conversations: id -> title."""
    if not settings.paths.conversations_file.exists():
        return {}
    with app.store(settings) as conversations:
        return {info.id: info.title for info in conversations.list()}


def owners(app: App, settings: Settings, store: BlockStore, typed: Sequence[str]) -> list[str]:
    """The ids that were meant, also of conversations that are gone; all there are if nothing was typed.

    Raises:
        UsageError: one of them is the beginning of none, or of several.
    """
    from edge.errors import UsageError

    using = {owner for block in store.ls() for owner in block.owners}
    if not typed:
        return sorted(using)
    known = using | titles(app, settings).keys()
    found = []
    for text in typed:
        meant = [text] if text in known else sorted(id for id in known if text and id.startswith(text))
        if len(meant) != 1:
            few = "There is no conversation" if not meant else f"{len(meant)} conversations begin with"
            raise UsageError(f"{few} {text}.", "See edge kv ls.")
        found += meant
    return list(dict.fromkeys(found))


def keys_of(app: App, settings: Settings, store: BlockStore, target: str) -> list[str]:
    """Keys of the blocks that are meant: those of a conversation, or the one whose key begins like that.

    Raises:
        UsageError: there are none, or it is not clear which.
    """
    from edge.errors import UsageError

    if _KEY.fullmatch(target):
        keys = [block.key for block in store.ls() if block.key.startswith(target)]
        if len(keys) == 1:
            return keys
        if keys:
            raise UsageError(f"{len(keys)} blocks have keys that begin with {target}.", "Give more of it.")
    (id,) = owners(app, settings, store, [target])
    found = [block.key for block in store.ls(owner=id)]
    if not found:
        raise UsageError(f"Nothing is kept of conversation {id}.", "It is once a model has read it: edge chat.")
    return found


def fingerprint_here(app: App, settings: Settings) -> tuple[bytes | None, str]:
    """What blocks of the model are marked with on this machine; or None and why that is not known."""
    from edge.errors import EdgeError

    try:
        with app.load(settings=settings, store=None, on_progress=lambda stage, share: True) as assistant:
            if assistant.kv_fingerprint is None:
                return None, "Nothing is kept on the disk with these settings or this model (kv.enabled)."
            return assistant.kv_fingerprint, ""
    except EdgeError as error:
        return None, f"The model {settings.model} cannot be loaded here: {error.message}"
