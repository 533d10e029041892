"""Themes of one's own: TOML files in `themes` beside the settings file, checked before the chat uses them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import msgspec
from textual.color import Color, ColorParseError
from textual.theme import BUILTIN_THEMES, Theme

from edge.errors import ConfigError
from edge.files import open_file, parse_toml
from edge_chat.theme import THEMES

__all__ = ["OwnThemes", "load_own_themes", "theme_names"]

_MAX_BYTES = 256 * 1024
_MIN_CONTRAST = 3.0  # of text on its background; WCAG 2.1 asks for 4.5, which not every popular theme has
_COLOURS = (
    *("primary", "secondary", "accent", "foreground", "background", "surface", "panel", "boost"),
    *("success", "warning", "error"),
)
_STYLES = ("text-style", "link-style")  # variables with these in their names are styles, not colours


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A theme file. What it leaves out is that of the theme `base`, or of edge's own dark or light one."""

    base: str | None = None
    dark: bool | None = None
    primary: str | None = None
    secondary: str | None = None
    accent: str | None = None
    foreground: str | None = None
    background: str | None = None
    surface: str | None = None
    panel: str | None = None
    boost: str | None = None
    success: str | None = None
    warning: str | None = None
    error: str | None = None
    luminosity_spread: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    text_alpha: Annotated[float, msgspec.Meta(ge=0.5, le=1)] | None = None
    variables: dict[str, str] = {}


@dataclass(frozen=True)
class OwnThemes:
    """The user's themes.

    Attributes:
        usable: by name.
        broken: name of a theme that cannot be used -> why.
    """

    usable: Mapping[str, Theme] = field(default_factory=dict)
    broken: Mapping[str, ConfigError] = field(default_factory=dict)

    def refuse_broken(self, name: str | None) -> None:
        """Raise the ConfigError of a theme that cannot be used."""
        if name is not None and name in self.broken:
            raise self.broken[name]


def load_own_themes(folder: Path) -> OwnThemes:
    """Read all themes of a folder; a broken file does not spoil the others, and a missing folder has none."""
    usable: dict[str, Theme] = {}
    broken: dict[str, ConfigError] = {}
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix == ".toml" and not path.name.startswith("."))
    except OSError:
        return OwnThemes()
    for path in paths:
        try:
            usable[path.stem] = _read(path)
        except ConfigError as error:
            broken[path.stem] = error
    return OwnThemes(usable, broken)


def theme_names(folder: Path) -> list[str]:
    """Return the names of all themes that can be used, the user's in `folder` among them, without starting the app."""
    return [*BUILTIN_THEMES, *(theme.name for theme in THEMES), *load_own_themes(folder).usable]


def _read(path: Path) -> Theme:
    known = {theme.name: theme for theme in (*BUILTIN_THEMES.values(), *THEMES)}
    if path.stem in known or path.stem in ("dark", "light"):
        raise _error(path, f"there is a theme {path.stem} already", "Give the file another name.")
    if not path.is_file():
        raise _error(path, "it is not a file", "Remove or rename it.")
    try:
        with open_file(path) as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise _error(path, f"it cannot be read ({error.strerror})", "Check its permissions.") from error
    if len(data) > _MAX_BYTES:
        raise _error(path, f"it is longer than {_MAX_BYTES:,} bytes", "A theme has some 20 lines.")
    try:
        text = data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError:
        raise _error(path, "it is not UTF-8 text", "Save it as UTF-8.") from None
    document = parse_toml(path, text)
    _refuse_unknown(path, document, [*_File.__struct_fields__], "setting")
    try:
        given = msgspec.convert(document, _File)
    except msgspec.ValidationError as error:
        what = str(error).replace(" | null", "").replace("`str`", "a text in quotes").replace("`$.", "`")
        raise _error(path, what, 'Write colours like primary = "#6cb6ff", and dark = true or false.') from error
    return _make(path, given, known)


def _make(path: Path, given: _File, known: Mapping[str, Theme]) -> Theme:
    base_name = given.base or ("edge-light" if given.dark is False else "edge-dark")
    base_name = {"dark": "edge-dark", "light": "edge-light"}.get(base_name, base_name)
    base = known.get(base_name)
    if base is None or base.ansi:
        raise _error(path, f"there is no theme {base_name!r} to base it on", _nearest(base_name, known))
    _refuse_unknown(path, given.variables, _variables(base), "variable")
    for name in _COLOURS:
        value = getattr(given, name)
        if value is not None:
            _check_colour(path, name, value)
    for name, value in given.variables.items():
        if not name.endswith(_STYLES):
            _check_colour(path, f"variables.{name}", value.rpartition(" ")[0] if value.endswith("%") else value)
    fields = ("dark", "luminosity_spread", "text_alpha", *_COLOURS)
    changes: dict[str, Any] = {name: value for name in fields if (value := getattr(given, name)) is not None}
    values = {name: getattr(base, name) for name in fields} | changes
    # A colour of the base's variables would be left over beside another palette.
    inherited = {} if {"background", "primary"} & changes.keys() else base.variables
    theme = Theme(name=path.stem, variables={**inherited, **given.variables}, **values)
    _check_contrast(path, theme)
    return theme


def _variables(base: Theme) -> list[str]:
    return list(dict.fromkeys([*base.to_color_system().generate(), *(name for theme in THEMES for name in theme.variables)]))


def _refuse_unknown(path: Path, given: Iterable[str], known: Iterable[str], what: str) -> None:
    for name in given:
        if name not in (names := list(known)):
            raise _error(path, f"there is no {what} {name!r}", _nearest(name, names))


def _check_colour(path: Path, name: str, value: str) -> None:
    try:
        Color.parse(value)
    except ColorParseError:
        hint = 'Write it like "#6cb6ff", "rgb(108, 182, 255)" or the name of a CSS colour.'
        raise _error(path, f"{name} = {value!r} is not a colour", hint) from None


def _check_contrast(path: Path, theme: Theme) -> None:
    colours = theme.to_color_system().generate()
    text = Color.parse(colours["foreground"])
    for name in ("background", "surface", "panel"):
        ground = Color.parse(colours[name])
        light, dark = sorted((_luminance(text), _luminance(ground)), reverse=True)
        contrast = (light + 0.05) / (dark + 0.05)
        if contrast < _MIN_CONTRAST:
            what = f"text ({text.hex}) on {name} ({ground.hex}) has a contrast of {contrast:.1f} to 1"
            raise _error(path, what, f"Change foreground or {name}: {_MIN_CONTRAST:.0f} to 1 is the least, 4.5 to 1 is good.")


def _luminance(colour: Color) -> float:
    """Return the relative luminance of WCAG 2.1."""
    red, green, blue = ((c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4) for c in colour.normalized)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _nearest(name: str, known: Iterable[str]) -> str:
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(sorted(names)[:30])}."


def _error(path: Path, what: str, hint: str) -> ConfigError:
    return ConfigError(f"The theme {path} cannot be used: {what}.", hint)
