"""Shell completion of values. Quick and silent: an error must not spill into a prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import click
from click.shell_completion import CompletionItem

__all__ = ["complete_conversation", "complete_local_model", "complete_model", "complete_setting", "complete_setting_name"]


def _completer(find: Callable[[], Iterable[tuple[str, str]]]) -> Callable[[click.Context, Any, str], list[CompletionItem]]:
    def complete(ctx: click.Context, param: Any, incomplete: str) -> list[CompletionItem]:
        try:
            return [CompletionItem(value, help=about) for value, about in find() if value.startswith(incomplete)]
        except Exception:  # noqa: BLE001 (a broken settings file must not print a traceback at every TAB)
            return []

    return complete


def _catalogue() -> Iterable[tuple[str, str]]:
    from edge.catalog import load_catalog
    from edge.config import load_settings

    return ((name, entry.description) for name, entry in load_catalog(load_settings()).items())


def _fetched_models() -> Iterable[tuple[str, str]]:
    from edge.catalog import list_models
    from edge.config import load_settings

    return ((model.name, model.origin) for model in list_models(load_settings()) if model.owner == "edge")


def _settings() -> Iterable[tuple[str, str]]:
    from edge.config import setting_keys

    return ((name, key.allowed) for name, key in setting_keys().items())


def _conversations() -> Iterable[tuple[str, str]]:
    from edge.config import load_settings
    from edge.conversation import ConversationStore

    path = load_settings().paths.conversations_file
    if not path.is_file():
        return []
    with ConversationStore(path) as store:
        return [(info.id, info.title) for info in store.list(limit=50)]


def complete_model(ctx: click.Context, param: Any, incomplete: str) -> list[CompletionItem]:
    """Complete names of the catalogue, else files."""
    return _completer(_catalogue)(ctx, param, incomplete) or [CompletionItem(incomplete, type="file")]


complete_local_model = _completer(_fetched_models)
complete_setting_name = _completer(_settings)
complete_setting = _completer(lambda: ((f"{name}=", about) for name, about in _settings()))
complete_conversation = _completer(_conversations)
