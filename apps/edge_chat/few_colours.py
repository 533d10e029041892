"""Themes for terminals with 256 or 16 colours.

There a dark blue-grey is shown as navy blue, a cream as bright yellow, and two grounds may become one. In 256 colours the
grounds become greys of the palette, each a different one. 16 colours have no third ground that text can be read on: they get
the background, and one more for bars and the chosen line.
"""

from __future__ import annotations

from dataclasses import replace

from rich.color import Color
from textual.theme import Theme

__all__ = ["for_terminal", "grounds_of"]

_GROUNDS = ("background", "surface", "panel")
_N_GREYS = 25  # from black to white, in the palette of 256 colours

_DARK_16 = {
    "background": "#000000",
    "surface": "#000000",
    "panel": "#0000aa",
    "foreground": "#ffffff",
    "primary": "#55ffff",
    "secondary": "#55ff55",
    "accent": "#ffff55",
    "success": "#55ff55",
    "warning": "#ffff55",
    "error": "#ff5555",
}
_LIGHT_16 = {
    "background": "#ffffff",
    "surface": "#ffffff",
    "panel": "#aaaaaa",
    "foreground": "#000000",
    "primary": "#0000aa",
    "secondary": "#aa00aa",
    "accent": "#aa0000",
    "success": "#0000aa",
    "warning": "#aa00aa",
    "error": "#aa0000",
}
_DARK_16_VARIABLES = {
    "text-disabled": "#aaaaaa",
    "border-blurred": "#aaaaaa",
    "scrollbar": "#aaaaaa",
    "block-cursor-background": "#aaaaaa",
    "block-cursor-foreground": "#000000",
    "block-cursor-blurred-background": "#0000aa",
}
_LIGHT_16_VARIABLES = {
    "text-disabled": "#555555",
    "border-blurred": "#aaaaaa",
    "scrollbar": "#aaaaaa",
    "block-cursor-background": "#0000aa",
    "block-cursor-foreground": "#ffffff",
    "block-cursor-blurred-background": "#aaaaaa",
}


def for_terminal(theme: Theme, color_system: str | None) -> Theme:
    """Return a theme whose grounds differ in what the terminal can show.

    Args:
        theme: the theme.
        color_system: as rich names it: "truecolor", "256", "standard", or None for no colours.
    """
    if theme.ansi:
        return theme
    if color_system == "256":
        return _replaced(theme, _greys(theme), {})
    if color_system == "standard":
        colours, variables = (_DARK_16, _DARK_16_VARIABLES) if theme.dark else (_LIGHT_16, _LIGHT_16_VARIABLES)
        return _replaced(theme, colours, variables)
    return theme


def grounds_of(theme: Theme) -> dict[str, str]:
    """Return "background", "surface" and "panel" of a theme, which may leave the last two to be computed."""
    generated = theme.to_color_system().generate()
    return {name: generated[name][:7] for name in _GROUNDS}


def _greys(theme: Theme) -> dict[str, str]:
    """Return a different grey of the palette for each ground, as light as that is."""
    step = 1 if theme.dark else -1
    used: set[int] = set()
    greys: dict[str, str] = {}
    for name, ground in grounds_of(theme).items():
        red, green, blue = Color.parse(ground).get_truecolor()
        grey = round((max(red, green, blue) + min(red, green, blue)) / 510 * _N_GREYS)
        while grey in used:
            grey += step
        used.add(grey)
        level = round(255 * grey / _N_GREYS)  # which rich turns into that grey of the palette
        greys[name] = f"#{level:02x}{level:02x}{level:02x}"
    return greys


def _replaced(theme: Theme, colours: dict[str, str], variables: dict[str, str]) -> Theme:
    """Replace colours of a theme, also where a variable of it repeats one of them."""
    old = {str(getattr(theme, name) or "").lower(): new for name, new in colours.items()}
    old |= {before.lower(): colours[name] for name, before in grounds_of(theme).items()}
    follow = {name: old.get(value.lower(), value) for name, value in theme.variables.items()}
    return replace(theme, **colours, variables={**follow, **variables})  # type: ignore[arg-type]
