"""Settings whose right values are known only where they are used: the names of models, backends, themes, actions and keys.

`edge config set` refuses a wrong one, `edge doctor` reports it. What belongs to the chat is checked by the chat itself.
"""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING

from edge.errors import ConfigError, ModelFileError

if TYPE_CHECKING:
    from edge.config import Settings

__all__ = ["CHECKED", "check_setting"]

_NO_CHAT = "the chat app, which knows its themes and keys, is not installed."


def check_setting(name: str, settings: Settings) -> str:
    """Refuse a value that nothing here would know.

    Args:
        name: of the setting, one of CHECKED.
        settings: merged, with the value to check.

    Returns:
        Why it could not be checked; "" where it is right.

    Raises:
        ConfigError: there is nothing of that name; the nearest one is in the hint.
        ModelNotFoundError, UsageError: no model can be called that.
    """
    return CHECKED[name](settings)


def _check_model(settings: Settings) -> str:
    from edge.catalog import check_reference

    try:
        check_reference(settings.model, settings)
    except ModelFileError as error:
        return error.message  # it is there; what is wrong with it is said when it is loaded
    return ""


def _check_backend(settings: Settings) -> str:
    from edge.registry import ENGINES

    wanted = settings.backend
    if wanted is not None and wanted not in ENGINES:
        near = difflib.get_close_matches(wanted, ENGINES, n=1, cutoff=0.5)
        hint = f"Did you mean {near[0]}?" if near else f"Known: {', '.join(ENGINES)}, or auto."
        raise ConfigError(f"There is no backend {wanted!r}.", hint)
    return ""


def _check_theme(settings: Settings) -> str:
    if importlib.util.find_spec("textual") is None:
        return _NO_CHAT
    from edge_chat.settings import check_theme

    check_theme(settings.chat.theme)
    return ""


def _check_keys(settings: Settings) -> str:
    if importlib.util.find_spec("textual") is None:
        return _NO_CHAT
    from edge_chat.settings import check_keys

    check_keys(settings.chat.keys)
    return ""


CHECKED: dict[str, Callable[[Settings], str]] = {
    "model": _check_model,
    "backend": _check_backend,
    "chat.theme": _check_theme,
    "chat.keys": _check_keys,
}
"""Name of a setting -> its check."""
