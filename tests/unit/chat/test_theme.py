from __future__ import annotations

import itertools

import pytest
from textual.color import Color
from textual.theme import Theme

from edge.errors import ConfigError
from edge_chat.theme import DARK, LIGHT, THEMES, choose_theme

NAMES = [theme.name for theme in THEMES]


def luminance(color: Color) -> float:
    def linear(channel: float) -> float:
        return channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4

    red, green, blue = (linear(c / 255) for c in color.rgb)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: Color, other: Color) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_contrast_of_black_and_white_is_21() -> None:
    assert contrast(Color.parse("#000000"), Color.parse("#ffffff")) == pytest.approx(21)


@pytest.mark.parametrize("theme", THEMES, ids=NAMES)
def test_text_can_be_read_on_everything_it_stands_on(theme: Theme) -> None:
    colors = {
        name: Color.parse(value)
        for name, value in theme.to_color_system().generate().items()
        if value.startswith("#") and " " not in value
    }
    backgrounds = [colors[name] for name in ("background", "surface", "panel")]
    for background in backgrounds:
        faint = background.blend(colors["foreground"], 0.7)
        inks = {name: colors[name] for name in ("foreground", "primary", "secondary", "accent", "error", "warning")}
        for name, ink in {**inks, "faint": faint}.items():
            assert contrast(ink, background) >= 4.5, (theme.name, name, background.hex)
    cursor = theme.variables["block-cursor-background"], theme.variables["block-cursor-foreground"]
    assert contrast(*map(Color.parse, cursor)) >= 4.5


def test_theme_by_background_of_the_terminal() -> None:
    assert choose_theme(None, NAMES, {}) == DARK.name
    assert choose_theme(None, NAMES, {"COLORFGBG": "15;0"}) == DARK.name
    assert choose_theme(None, NAMES, {"COLORFGBG": "0;15"}) == LIGHT.name
    assert choose_theme(None, NAMES, {"COLORFGBG": "0;default;7"}) == LIGHT.name


def test_theme_by_name() -> None:
    known = [*NAMES, "nord"]
    assert choose_theme("nord", known, {}) == "nord"
    assert choose_theme("dark", known, {"COLORFGBG": "0;15"}) == DARK.name
    assert choose_theme("light", known, {}) == LIGHT.name
    with pytest.raises(ConfigError, match=r"no theme 'nrod'.*Did you mean nord"):
        choose_theme("nrod", known, {})


def test_themes_differ() -> None:
    for one, other in itertools.combinations(THEMES, 2):
        assert one.dark != other.dark
