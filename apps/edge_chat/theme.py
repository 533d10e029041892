"""The app's own dark and light themes, besides those of textual.

Contrast: every text colour has at least 4.5 to 1 against its background (WCAG 2.1 AA); a test measures it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

from textual.theme import Theme

from edge.errors import ConfigError

__all__ = ["DARK", "LIGHT", "THEMES", "choose_theme"]

DARK = Theme(
    name="edge-dark",
    primary="#6cb6ff",
    secondary="#8ddb8c",
    accent="#e5b567",
    foreground="#d7dce4",
    background="#14171c",
    surface="#1b1f26",
    panel="#252b34",
    success="#8ddb8c",
    warning="#e5b567",
    error="#ff8a80",
    dark=True,
    variables={
        "border": "#6cb6ff",
        "border-blurred": "#3a424e",
        "scrollbar": "#3a424e",
        "scrollbar-hover": "#566070",
        "scrollbar-active": "#6cb6ff",
        "scrollbar-background": "#14171c",
        "scrollbar-background-hover": "#14171c",
        "scrollbar-background-active": "#14171c",
        "block-cursor-background": "#2d4a6b",
        "block-cursor-foreground": "#ffffff",
        "block-cursor-text-style": "bold",
        "block-cursor-blurred-background": "#252b34",
        "input-selection-background": "#6cb6ff 35%",
        "footer-key-foreground": "#6cb6ff",
    },
)

LIGHT = Theme(
    name="edge-light",
    primary="#0b5cad",
    secondary="#2c6e2f",
    accent="#8a4b00",
    foreground="#23272e",
    background="#fbfaf8",
    surface="#f2f0ec",
    panel="#e6e3dd",
    success="#2c6e2f",
    warning="#8a4b00",
    error="#b3261e",
    dark=False,
    variables={
        "border": "#0b5cad",
        "border-blurred": "#c9c4ba",
        "scrollbar": "#c9c4ba",
        "scrollbar-hover": "#a39d91",
        "scrollbar-active": "#0b5cad",
        "scrollbar-background": "#fbfaf8",
        "scrollbar-background-hover": "#fbfaf8",
        "scrollbar-background-active": "#fbfaf8",
        "block-cursor-background": "#0b5cad",
        "block-cursor-foreground": "#ffffff",
        "block-cursor-text-style": "bold",
        "block-cursor-blurred-background": "#e6e3dd",
        "input-selection-background": "#0b5cad 25%",
        "footer-key-foreground": "#0b5cad",
    },
)

THEMES = (DARK, LIGHT)


def choose_theme(wanted: str | None, known: Iterable[str], environ: Mapping[str, str]) -> str:
    """Return the name of the theme to start with.

    Args:
        wanted: from the settings; None takes dark or light by the terminal's background (COLORFGBG).
        known: names of all themes.
        environ: the environment.

    Raises:
        ConfigError: there is no theme of that name.
    """
    names = list(known)
    if wanted is None:
        return (LIGHT if _has_light_background(environ.get("COLORFGBG", "")) else DARK).name
    short = {"dark": DARK.name, "light": LIGHT.name}
    name = short.get(wanted, wanted)
    if name not in names:
        near = difflib.get_close_matches(wanted, [*names, *short], n=1)
        hint = f"Did you mean {near[0]}?" if near else f"Known: {', '.join(sorted(names))}."
        raise ConfigError(f"There is no theme {wanted!r}.", hint)
    return name


def _has_light_background(colorfgbg: str) -> bool:
    """Read COLORFGBG: "foreground;background" in the terminal's 16 colours, as rxvt, Konsole and others set it."""
    background = colorfgbg.rpartition(";")[2]
    return background in ("7", "15")
