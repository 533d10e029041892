"""Checks of settings whose valid values are known elsewhere: models, backends, themes, actions and keys.

`edge config set` refuses a wrong value, `edge doctor` reports it. The chat checks its own settings.
"""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from edge.errors import ConfigError, ModelFileError, UsageError

if TYPE_CHECKING:
    from edge.config import Settings

__all__ = ["CHECKED", "check_setting"]


def check_setting(name: str, settings: Settings) -> str:
    """Refuse an unknown name in one of the settings of CHECKED. Return why it could not be checked, or "".

    Raises:
        ConfigError: the name is unknown; the hint has the closest one.
        ModelNotFoundError, UsageError: it cannot be a model.
    """
    return CHECKED[name](settings)


def _check_model(settings: Settings) -> str:
    from edge.catalog import check_reference

    try:
        check_reference(settings.model, settings)
    except ModelFileError as error:
        return error.message  # it exists; loading it reports what is wrong
    return ""


def _check_backend(settings: Settings) -> str:
    from edge.registry import ENGINES

    wanted = settings.backend
    if wanted is not None and wanted not in ENGINES:
        near = difflib.get_close_matches(wanted, ENGINES, n=1, cutoff=0.5)
        hint = f"Did you mean {near[0]}?" if near else f"Known: {', '.join(ENGINES)}, or auto."
        raise ConfigError(f"There is no backend {wanted!r}.", hint)
    return ""


def _check_prefiller(settings: Settings) -> str:
    from edge.plan.prefill import check_prefiller

    name = settings.engine.prefill_with
    if name not in (None, "off"):
        try:
            check_prefiller(name)
        except UsageError as error:
            raise ConfigError(error.message, error.hint) from None
    return ""


def _check_chat(name: str, settings: Settings) -> str:
    if importlib.util.find_spec("textual") is None:
        return "the chat app, which knows its themes and keys, is not installed."
    from edge_chat.keys import make_keymap
    from edge_chat.own_themes import load_own_themes, theme_names
    from edge_chat.table import REGISTRY
    from edge_chat.theme import choose_theme

    if name == "theme":
        folder = settings.paths.themes_dir
        load_own_themes(folder).refuse_broken(settings.chat.theme)
        choose_theme(settings.chat.theme, theme_names(folder), {})
    else:
        make_keymap(REGISTRY, settings.chat.keys)
    return ""


CHECKED: dict[str, Callable[[Settings], str]] = {
    "model": _check_model,
    "backend": _check_backend,
    "engine.prefill_with": _check_prefiller,
    "chat.theme": partial(_check_chat, "theme"),
    "chat.keys": partial(_check_chat, "keys"),
}
"""Name of a setting -> its check."""
