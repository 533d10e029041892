"""The app's own dark and light themes, besides those of textual.

Contrast: every text colour has at least 4.5 to 1 against its background (WCAG 2.1 AA); a test measures it. The greys have so
little colour that they stay greys in 256 colours; few_colours.py does that for the other themes.
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
    background="#151618",
    surface="#1e2023",
    panel="#2a2d31",
    success="#8ddb8c",
    warning="#e5b567",
    error="#ff8a80",
    dark=True,
    variables={
        "border": "#6cb6ff",
        "border-blurred": "#3f434a",
        "scrollbar": "#3f434a",
        "scrollbar-hover": "#5c6068",
        "scrollbar-active": "#6cb6ff",
        "scrollbar-background": "#151618",
        "scrollbar-background-hover": "#151618",
        "scrollbar-background-active": "#151618",
        "block-cursor-background": "#1d5a87",
        "block-cursor-foreground": "#ffffff",
        "block-cursor-text-style": "bold",
        "block-cursor-blurred-background": "#2a2d31",
        "input-selection-background": "#6cb6ff 35%",
        "footer-key-foreground": "#6cb6ff",
        # Textual would make these lighter or darker, and another hue in 256 colours; ours can be read as they are.
        "text-primary": "#6cb6ff",
        "text-secondary": "#8ddb8c",
        "text-accent": "#e5b567",
        "text-success": "#8ddb8c",
        "text-warning": "#e5b567",
        "text-error": "#ff8a80",
    },
)

LIGHT = Theme(
    name="edge-light",
    primary="#0b5cad",
    secondary="#2c6e2f",
    accent="#6f4500",
    foreground="#23272e",
    background="#fbfbfa",
    surface="#f0f0ee",
    panel="#e2e2df",
    success="#2c6e2f",
    warning="#6f4500",
    error="#b3261e",
    dark=False,
    variables={
        "border": "#0b5cad",
        "border-blurred": "#c4c3c0",
        "scrollbar": "#c4c3c0",
        "scrollbar-hover": "#9c9a95",
        "scrollbar-active": "#0b5cad",
        "scrollbar-background": "#fbfbfa",
        "scrollbar-background-hover": "#fbfbfa",
        "scrollbar-background-active": "#fbfbfa",
        "block-cursor-background": "#0b5cad",
        "block-cursor-foreground": "#ffffff",
        "block-cursor-text-style": "bold",
        "block-cursor-blurred-background": "#e2e2df",
        "input-selection-background": "#0b5cad 25%",
        "footer-key-foreground": "#0b5cad",
        "text-primary": "#0b5cad",
        "text-secondary": "#2c6e2f",
        "text-accent": "#6f4500",
        "text-success": "#2c6e2f",
        "text-warning": "#6f4500",
        "text-error": "#b3261e",
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
