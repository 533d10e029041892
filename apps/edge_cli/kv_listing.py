"""Tables of `edge kv`, and the lookup of the conversations and blocks that the user names."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.names import IMPORTED, is_answer_namespace
from edge.units import duration_text, size_text

if TYPE_CHECKING:
    from edge.config import Settings
    from edge.kv.records import BlockInfo, StoreStats, Usage
    from edge.kv.store import BlockStore
    from edge_cli.app import App

__all__ = [
    "BLOCK_HEADINGS", "GROUP_HEADINGS", "Group", "block_rows", "fingerprint_here", "grouped", "imported_namespaces",
    "is_slot_file", "keys_of", "names_model", "owners", "pin_text", "stats_json", "stats_rows", "titles", "warmed",
]  # fmt: skip

GROUP_HEADINGS = ("what", "tokens", "size", "saves", "last used", "")
BLOCK_HEADINGS = ("key", "position", "tokens", "size", "saves", "last used", "made by", "used by", "")
_TITLE_CHARS = 48
_MOST_USERS = 4
_KEY = re.compile("[0-9a-f]{8,64}")


@dataclass(frozen=True)
class Group:
    """Blocks that the same conversations use.

    Attributes:
        title: a name for people.
        conversations: ids of the saved conversations that use them, and names of `edge kv warm`.
        n_blocks, n_tokens: their number.
        size_bytes: of their files.
        prefill_ms: time that computing them took.
        last_used: Unix time in seconds.
        n_pinned: number of pinned blocks.
        pinned_until: Unix time in seconds when the last pin ends; None if one never does, or nothing is pinned.
        is_imported: they are in the namespace of an imported conversation.
    """

    title: str
    conversations: tuple[str, ...]
    n_blocks: int
    n_tokens: int
    size_bytes: int
    prefill_ms: float
    last_used: float
    n_pinned: int
    pinned_until: float | None = None
    is_imported: bool = False

    def row(self, now: float) -> tuple[str, ...]:
        """Return a line of a table."""
        part = "" if self.n_pinned == self.n_blocks else "partly "
        pinned = part + pin_text(self.pinned_until) if self.n_pinned else ""
        state = ", ".join(part for part in (pinned, "imported" if self.is_imported else "") if part)
        saves = duration_text(self.prefill_ms / 1000)
        return self.title, f"{self.n_tokens:,}", size_text(self.size_bytes), saves, ago(now - self.last_used), state


def grouped(used: Iterable[Usage], titles: Mapping[str, str]) -> list[Group]:
    """Group blocks by the conversations that use them, largest group first.

    Args:
        used: as `BlockStore.usages` returns them.
        titles: id -> title of the saved conversations, and of what was prefilled ahead. All others count as one.
    """
    members: dict[tuple[tuple[str, ...], bool, bool, bool], list[Usage]] = {}
    for one in used:
        known = tuple(owner for owner in one.owners if owner in titles)
        is_imported = one.namespace.startswith(IMPORTED)
        kind = known, len(known) < len(one.owners), is_answer_namespace(one.namespace), is_imported
        members.setdefault(kind, []).append(one)
    groups = [
        Group(
            title=_title(known, titles, has_others, is_answers),
            conversations=known,
            n_blocks=sum(one.n_blocks for one in found),
            n_tokens=sum(one.n_tokens for one in found),
            size_bytes=sum(one.size_bytes for one in found),
            prefill_ms=sum(one.prefill_ms for one in found),
            last_used=max(one.last_used for one in found),
            n_pinned=sum(one.n_pinned for one in found),
            pinned_until=_last_end([one.pinned_until for one in found if one.n_pinned]),
            is_imported=is_imported,
        )
        for (known, has_others, is_answers, is_imported), found in members.items()
    ]
    return sorted(groups, key=lambda group: (-group.size_bytes, group.title))


def _title(known: Sequence[str], titles: Mapping[str, str], has_others: bool, is_answers: bool) -> str:
    if is_answers:
        return "cached answers (kv.answers)"
    names = [f"{_short(titles[id])} ({id})" for id in known]
    if has_others:
        names.append("conversations that are not saved")
    if not names:
        return "used by no conversation"
    if len(names) == 1:
        return names[0]
    more = f" and {len(names) - 2:,} more" if len(names) > 2 else ""
    return f"shared: {', '.join(names[:2])}{more}"


def pin_text(until: float | None) -> str:
    """Return "pinned", and until when, in local time."""
    return "pinned" if until is None else time.strftime("pinned until %Y-%m-%d %H:%M", time.localtime(until))


def _last_end(ends: Sequence[float | None]) -> float | None:
    known = [until for until in ends if until is not None]
    return max(known) if known and len(known) == len(ends) else None


def stats_json(found: StoreStats, settings: Settings, directory: str) -> dict[str, Any]:
    """Return what `edge kv stats --json` prints."""
    names = ("n_blocks", "n_tokens", "size_bytes", "budget_bytes", "index_bytes", "free_bytes", "prefill_ms")
    limit_gb = settings.kv.max_writes_gb_per_day
    return {
        "directory": directory,
        "is_encrypted": settings.kv.encrypt,
        **{name: getattr(found, name) for name in names},
        "written_today_bytes": found.written_bytes,
        "max_written_bytes": None if limit_gb is None else round(limit_gb * 1e9),
        "max_age_days": settings.kv.max_age_days,
        "models": [
            {
                "fingerprint": model,
                "name": found.names.get(model),
                "namespace": namespace,
                "n_blocks": n_blocks,
                "size_bytes": n_bytes,
                "budget_gb": _model_budget(settings, found.names.get(model)),
            }
            for model, namespace, n_blocks, n_bytes in found.spaces
        ],
    }


def stats_rows(found: StoreStats, settings: Settings, directory: str) -> list[tuple[str, str]]:
    """Return the table of `edge kv stats`."""
    kv = settings.kv
    share = found.size_bytes / found.budget_bytes if found.budget_bytes else 0.0
    written = size_text(found.written_bytes)
    if kv.max_writes_gb_per_day is not None:
        most = kv.max_writes_gb_per_day * 1e9
        written += f" of at most {size_text(most)} (kv.max_writes_gb_per_day)"
        if found.written_bytes >= most / 2:
            written += "; only what is reused is stored until tomorrow (UTC)" if found.written_bytes < most else ", used up"
    age = "until its space is needed (kv.max_age_days)"
    if kv.max_age_days is not None:
        age = f"{kv.max_age_days:g} days after its last use (kv.max_age_days)"
    rows = [
        ("directory", directory),
        ("stored", f"{found.n_tokens:,} tokens in {found.n_blocks:,} blocks"),
        ("size", f"{size_text(found.size_bytes)}, {share:.0%} of the budget of {size_text(found.budget_bytes)} (kv.budget_gb)"),
        ("kept", age),
        ("written today", written),
        ("index", size_text(found.index_bytes)),
        ("saves", duration_text(found.prefill_ms / 1000)),
        (
            "free on that disk",
            f"{size_text(found.free_bytes)}, of which {size_text(kv.min_free_gb * 1e9)} stay free (kv.min_free_gb)",
        ),
        ("encrypted", "yes" if kv.encrypt else "no (kv.encrypt)"),
    ]
    for model, namespace, n_blocks, n_bytes in found.spaces:
        name = found.names.get(model)
        budget_gb = _model_budget(settings, name)
        most_text = "" if budget_gb is None else f" of at most {size_text(budget_gb * 1e9)}"
        title = f"model {name} ({model[:8]})" if name else f"model {model[:8]}"
        rows.append(
            (title + (f", {namespace}" if namespace else ""), f"{size_text(n_bytes)}{most_text} in {n_blocks:,} blocks")
        )
    return rows


def _model_budget(settings: Settings, name: str | None) -> float | None:
    return settings.kv.model_budgets_gb.get(name or "", settings.kv.model_budget_gb)


def _short(title: str) -> str:
    line = " ".join(title.split()) or "no title"
    return line if len(line) <= _TITLE_CHARS else line[: _TITLE_CHARS - 1] + "…"


def _users(owners: Sequence[str]) -> str:
    more = f" and {len(owners) - _MOST_USERS:,} more" if len(owners) > _MOST_USERS else ""
    return ", ".join(owners[:_MOST_USERS]) + more or "-"


def block_rows(blocks: Sequence[BlockInfo], now: float) -> list[tuple[str, ...]]:
    """Return every block as a line of a table."""
    return [
        (
            block.key[:12], f"{block.start:,}", f"{block.n_tokens:,}", size_text(block.size_bytes),
            duration_text(block.prefill_ms / 1000), ago(now - block.last_used), block.origin, _users(block.owners),
            pin_text(block.pinned_until) if block.is_pinned else "",
        )
        for block in blocks
    ]  # fmt: skip


def ago(seconds_ago: float) -> str:
    """Format the age of something: "5 min ago". A clock that was set back gives "just now"."""
    if seconds_ago < 60:
        return "just now"
    if seconds_ago < 3600:
        return f"{int(seconds_ago // 60)} min ago"
    if seconds_ago < 86_400:
        return f"{int(seconds_ago // 3600)} h ago"
    days = int(seconds_ago // 86_400)
    return "1 day ago" if days == 1 else f"{days} days ago"


def titles(app: App, settings: Settings) -> dict[str, str]:
    """Return the user's conversations: id -> title."""
    if not settings.paths.conversations_file.exists():
        return {}
    with app.store(settings) as conversations:
        return {info.id: info.title for info in conversations.list()}


def warmed(names: Iterable[str]) -> dict[str, str]:
    """Return those of these owners that `edge kv warm` and `import-slot` made, with a title."""
    from edge.kv.records import SLOT_OWNER, WARM_OWNER

    titles = {WARM_OWNER: "prefilled ahead", SLOT_OWNER: "imported slot"}
    return {name: title for name in names for begin, title in titles.items() if name.startswith(begin)}


def is_slot_file(path: Path) -> bool:
    """Return whether a file begins like a slot file or prompt cache of llama.cpp."""
    from edge.backends.llamacpp.state_file import is_state_file

    return is_state_file(path)


def owners(app: App, settings: Settings, store: BlockStore, typed: Sequence[str]) -> list[str]:
    """Return the ids for typed prefixes, including those of deleted conversations; all ids if nothing was typed.

    Raises:
        UsageError: a prefix matches no id, or several.
    """
    if not typed:
        return store.owners()
    saved = titles(app, settings).keys()
    return list(dict.fromkeys(_meant(text, saved | set(store.owners(text)), "conversation") for text in typed))


def imported_namespaces(app: App, settings: Settings, store: BlockStore, typed: Sequence[str]) -> dict[str, str]:
    """Return the namespaces of imported conversations or their forks: id -> namespace.

    Raises:
        UsageError: a prefix matches no id, or several.
    """
    known = {name[len(IMPORTED) :]: name for name in store.namespaces() if name.startswith(IMPORTED)}
    if settings.paths.conversations_file.exists():
        with app.store(settings) as conversations:
            known |= {
                info.id: info.cache_namespace for info in conversations.list() if info.cache_namespace.startswith(IMPORTED)
            }
    return {id: known[id] for id in (_meant(text, known.keys(), "imported conversation") for text in typed)}


def _meant(text: str, known: Set[str], what: str) -> str:
    from edge.errors import UsageError

    meant = [text] if text in known else sorted(id for id in known if text and id.startswith(text))
    if len(meant) != 1:
        few = f"There is no {what}" if not meant else f"{len(meant)} {what}s begin with"
        raise UsageError(f"{few} {text}.", "See edge kv ls.")
    return meant[0]


def keys_of(app: App, settings: Settings, store: BlockStore, target: str) -> list[str]:
    """Return the keys of a conversation's blocks, or of the block whose key begins with `target`.

    Raises:
        UsageError: there is no such block, or several.
    """
    from edge.errors import UsageError

    if _KEY.fullmatch(target):
        keys = store.find_keys(target)
        if len(keys) == 1:
            return keys
        if keys:
            raise UsageError(f"{len(keys)} blocks have keys that begin with {target}.", "Give more digits.")
    (id,) = owners(app, settings, store, [target])
    found = store.keys(id)
    if not found:
        raise UsageError(f"Nothing of conversation {id} is cached.", "Continue it once in edge chat.")
    return found


def names_model(options: Mapping[str, Any]) -> bool:
    """Return True if the command line sets the model."""
    assigned = (assignment.partition("=")[0].strip() for assignment in options.get("assignments", ()))
    return options.get("model") is not None or "model" in assigned


def fingerprint_here(app: App, settings: Settings) -> tuple[bytes | None, str]:
    """Return the fingerprint of the model on this machine; or None and the reason."""
    from edge.errors import EdgeError

    try:
        with app.load(settings=settings, store=None, on_progress=lambda stage, share: True) as assistant:
            if assistant.kv_fingerprint is None:
                return None, "These settings or this model do not use the on-disk cache (kv.enabled)."
            return assistant.kv_fingerprint, ""
    except EdgeError as error:
        return None, f"The model {settings.model} cannot be loaded here: {error.message}"
