"""Shell completion of values. Quick and silent: an error must not spill into a prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    from edge_voice.devices import Direction

__all__ = [
    "complete_backend",
    "complete_collection",
    "complete_conversation",
    "complete_downloadable",
    "complete_file",
    "complete_kv_type",
    "complete_language",
    "complete_local_model",
    "complete_microphone",
    "complete_model",
    "complete_prefiller",
    "complete_removable",
    "complete_role",
    "complete_setting",
    "complete_setting_name",
    "complete_setting_value",
    "complete_speaker",
    "complete_task",
    "complete_voice",
]


def _completer(find: Callable[[], Iterable[tuple[str, str]]]) -> Callable[[click.Context, Any, str], list[CompletionItem]]:
    def complete(ctx: click.Context, param: Any, incomplete: str) -> list[CompletionItem]:
        try:
            return [CompletionItem(value, help=about) for value, about in find() if value.startswith(incomplete)]
        except Exception:  # noqa: BLE001 (a broken settings file must not print a traceback at every TAB)
            return []

    return complete


def complete_file(ctx: click.Context, param: Any, incomplete: str) -> list[CompletionItem]:
    """Let the shell propose files and folders."""
    return [CompletionItem(incomplete, type="file")]


def _catalogue() -> Iterable[tuple[str, str]]:
    from edge.catalog import load_catalog
    from edge.config import load_settings

    return ((name, entry.description) for name, entry in load_catalog(load_settings()).items() if entry.voice is None)


def _downloadable() -> Iterable[tuple[str, str]]:
    """Return what `edge models pull` and `show` take: those for voice, too, and the set of them."""
    from edge.catalog import load_catalog
    from edge.config import load_settings

    names = ((name, entry.description) for name, entry in load_catalog(load_settings()).items())
    return [*names, ("voice", "The models of a voice conversation.")]


def _fetched_models() -> Iterable[tuple[str, str]]:
    from edge.catalog import list_models
    from edge.config import load_settings

    return ((model.name, model.origin) for model in list_models(load_settings()) if model.owner == "edge")


def _removable() -> Iterable[tuple[str, str]]:
    from edge.catalog import list_voice
    from edge.config import load_settings

    voice = ((entry.name, found.origin) for entry, found in list_voice(load_settings()) if found.owner == "edge")
    return [*_fetched_models(), *voice]


def _roles() -> Iterable[tuple[str, str]]:
    from edge.config import load_settings
    from edge.config.roles import list_roles

    return ((role.name, str(role.path)) for role in list_roles(load_settings()))


def _settings() -> Iterable[tuple[str, str]]:
    from edge.config import setting_keys

    return ((name, key.allowed) for name, key in setting_keys().items())


def _backends() -> Iterable[tuple[str, str]]:
    from edge.registry import ENGINES

    return ((row.name, f"for {', '.join(row.formats)}") for row in ENGINES.values() if row.is_automatic)


def _prefillers() -> Iterable[tuple[str, str]]:
    off = [("off", "the engine that decodes does it")]
    return [("auto", "as edge tune measured"), *off, *_backends()]


def _kv_types() -> Iterable[tuple[str, str]]:
    from edge.names import KV_TYPES

    return ((name, "") for name in KV_TYPES)


def _themes() -> Iterable[tuple[str, str]]:
    from edge.config import load_settings
    from edge_chat.own_themes import theme_names  # 0.2 s, since it imports textual

    return ((name, "") for name in theme_names(load_settings().paths.themes_dir))


_VALUES: dict[str, Callable[[], Iterable[tuple[str, str]]]] = {
    "model": _catalogue,
    "backend": _backends,
    "engine.prefill_with": _prefillers,
    "chat.theme": _themes,
}
"""Settings whose values are known elsewhere."""


def _values(key: str) -> Iterable[tuple[str, str]]:
    """Return the values that a setting may have, where they can be listed."""
    from edge.config import setting_keys

    found = setting_keys().get(key)
    if found is None:
        return
    if key in _VALUES:
        yield from _VALUES[key]()
    else:
        yield from ((value, "") for value in found.choices)
    if found.is_optional:
        yield "auto", "edge decides"


def _conversations() -> Iterable[tuple[str, str]]:
    from edge.config import load_settings
    from edge.conversation import ConversationStore

    path = load_settings().paths.conversations_file
    if not path.is_file():
        return []
    with ConversationStore(path) as store:
        return [(info.id, info.title) for info in store.list(limit=1000)]


def _collections() -> Iterable[tuple[str, str]]:
    from edge.documents.collection import collection_names

    return ((name, "") for name in collection_names())


def _devices(direction: Direction) -> Iterable[tuple[str, str]]:
    from edge_voice.devices import list_devices

    return ((one.name, f"number {one.index}, {one.system}") for one in list_devices(direction))


def _languages() -> Iterable[tuple[str, str]]:
    """Return codes that Whisper knows best; it takes 99 in all."""
    codes = {
        "de": "German", "en": "English", "es": "Spanish", "fr": "French", "hi": "Hindi", "it": "Italian", "ja": "Japanese",
        "ko": "Korean", "nl": "Dutch", "pl": "Polish", "pt": "Portuguese", "ru": "Russian", "tr": "Turkish", "uk": "Ukrainian",
        "zh": "Chinese",
    }  # fmt: skip
    return [("auto", "found out from the sound"), *codes.items()]


def complete_model(ctx: click.Context, param: Any, incomplete: str) -> list[CompletionItem]:
    """Complete names of the catalogue, else files."""
    return _completer(_catalogue)(ctx, param, incomplete) or [CompletionItem(incomplete, type="file")]


def complete_downloadable(ctx: click.Context, param: Any, incomplete: str) -> list[CompletionItem]:
    """Complete as `complete_model`, and models for voice, too."""
    return _completer(_downloadable)(ctx, param, incomplete) or [CompletionItem(incomplete, type="file")]


def _voices() -> Iterable[tuple[str, str]]:
    """Return the voices, and the speakers of those that have several."""
    from edge.catalog import load_catalog
    from edge_voice.registry import STAGES

    rows = [row for row in STAGES.values() if row.kind == "voice"]
    pieces = load_catalog()["kokoro-82m"].artifacts[0].pieces
    speakers = [piece.name.removeprefix("voices/").removesuffix(".bin") for piece in pieces if piece.name.startswith("voices/")]
    return [*((row.name, row.title) for row in rows), *((f"kokoro/{name}", "speaks English") for name in speakers)]


complete_voice = _completer(_voices)
complete_microphone = _completer(lambda: _devices("input"))
complete_speaker = _completer(lambda: _devices("output"))
complete_language = _completer(_languages)
complete_local_model = _completer(_fetched_models)
complete_removable = _completer(_removable)
complete_setting_name = _completer(_settings)
complete_backend = _completer(_backends)
complete_prefiller = _completer(_prefillers)
complete_kv_type = _completer(_kv_types)
complete_role = _completer(_roles)
complete_conversation = _completer(_conversations)
complete_collection = _completer(_collections)


def complete_setting_value(ctx: click.Context, param: Any, incomplete: str) -> list[CompletionItem]:
    """Complete the value of the setting that is named before it."""
    return _completer(lambda: _values(str(ctx.params.get("key", ""))))(ctx, param, incomplete)


def complete_setting(ctx: click.Context, param: Any, incomplete: str) -> list[CompletionItem]:
    """Complete KEY=VALUE: the names of settings, and behind the sign their values."""
    key, is_value, _ = incomplete.partition("=")
    if is_value:
        return _completer(lambda: ((f"{key}={value}", about) for value, about in _values(key)))(ctx, param, incomplete)
    return _completer(lambda: ((f"{name}=", about) for name, about in _settings()))(ctx, param, incomplete)


def _tasks() -> Iterable[tuple[str, str]]:
    from edge_convert.evaluate.tasks.suite import ABOUT

    return (*ABOUT.items(), ("all", "all of them"))


complete_task = _completer(_tasks)
