"""What the shell offers after TAB. Quick and silent: whatever goes wrong here must not spill into a prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import click
from click.shell_completion import CompletionItem

__all__ = ["complete_conversation", "complete_local_model", "complete_model", "complete_setting", "complete_setting_name"]


def _offer(incomplete: str, find: Callable[[], Iterable[tuple[str, str]]]) -> list[CompletionItem]:
    try:
        return [CompletionItem(value, help=about) for value, about in find() if value.startswith(incomplete)]
    except Exception:  # noqa: BLE001 (a broken settings file must not print a traceback at every TAB)
        return []


def complete_model(ctx: click.Context, param: Any, incomplete: str) -> list[CompletionItem]:
    """Names of the catalogue, else files."""

    def find() -> Iterable[tuple[str, str]]:
        from edge.catalog import load_catalog
        from edge.config import load_settings

        return ((name, entry.description) for name, entry in load_catalog(load_settings()).items())

    return _offer(incomplete, find) or [CompletionItem(incomplete, type="file")]


def complete_local_model(ctx: click.Context, param: Any, incomplete: str) -> list[CompletionItem]:
    """Models that edge fetched and could remove."""

    def find() -> Iterable[tuple[str, str]]:
        from edge.catalog import list_models
        from edge.config import load_settings

        return ((model.name, model.origin) for model in list_models(load_settings()) if model.owner == "edge")

    return _offer(incomplete, find)


def complete_setting_name(ctx: click.Context, param: Any, incomplete: str) -> list[CompletionItem]:
    """Names of settings."""

    def find() -> Iterable[tuple[str, str]]:
        from edge.config import setting_keys

        return ((name, key.allowed) for name, key in setting_keys().items())

    return _offer(incomplete, find)


def complete_setting(ctx: click.Context, param: Any, incomplete: str) -> list[CompletionItem]:
    """The beginning of KEY=VALUE."""

    def find() -> Iterable[tuple[str, str]]:
        from edge.config import setting_keys

        return ((f"{name}=", key.allowed) for name, key in setting_keys().items())

    return _offer(incomplete, find)


def complete_conversation(ctx: click.Context, param: Any, incomplete: str) -> list[CompletionItem]:
    """Conversations, newest first, with their titles."""

    def find() -> Iterable[tuple[str, str]]:
        from edge.config import load_settings
        from edge.conversation import ConversationStore

        path = load_settings().paths.conversations_file
        if not path.is_file():
            return []
        with ConversationStore(path) as store:
            return [(info.id, info.title) for info in store.list(limit=50)]

    return _offer(incomplete, find)
