from __future__ import annotations

import itertools

import pytest
from rich._palettes import EIGHT_BIT_PALETTE, STANDARD_PALETTE
from rich.color import Color as RichColor
from rich.color import ColorSystem
from textual.color import Color
from textual.theme import BUILTIN_THEMES, Theme
from textual.widgets import OptionList

from edge.errors import ConfigError
from edge_chat.few_colours import for_terminal, grounds_of
from edge_chat.theme import DARK, LIGHT, THEMES, choose_theme
from edge_chat.widgets.lines import LinesView
from tests.chat_app import fake_app, say, settle

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


EVERY_THEME = [*THEMES, *(theme for theme in BUILTIN_THEMES.values() if not theme.ansi)]
PALETTES = {"256": (ColorSystem.EIGHT_BIT, EIGHT_BIT_PALETTE), "standard": (ColorSystem.STANDARD, STANDARD_PALETTE)}


def downgraded(hex_color: str, system: str) -> Color:
    """Return what a terminal with few colours shows."""
    kind, palette = PALETTES[system]
    number = RichColor.parse(hex_color[:7]).downgrade(kind).number
    assert number is not None
    return Color(*palette[number])


@pytest.mark.parametrize("theme", EVERY_THEME, ids=[theme.name for theme in EVERY_THEME])
def test_grounds_are_distinct_greys_in_256_colours(theme: Theme) -> None:
    grounds = [downgraded(ground, "256") for ground in grounds_of(for_terminal(theme, "256")).values()]
    assert len(set(grounds)) == 3
    assert all(ground.r == ground.g == ground.b for ground in grounds), grounds


@pytest.mark.parametrize("theme", THEMES, ids=NAMES)
def test_our_own_themes_are_grey_in_256_colours_as_they_are(theme: Theme) -> None:
    shown = {name: downgraded(ground, "256") for name, ground in grounds_of(theme).items()}
    assert len(set(shown.values())) == 3 and all(ground.r == ground.g == ground.b for ground in shown.values())


@pytest.mark.parametrize("theme", EVERY_THEME, ids=[theme.name for theme in EVERY_THEME])
def test_bars_differ_from_the_background_in_16_colours(theme: Theme) -> None:
    grounds = {name: downgraded(ground, "standard") for name, ground in grounds_of(for_terminal(theme, "standard")).items()}
    assert grounds["panel"] != grounds["background"]


@pytest.mark.parametrize("system", PALETTES)
@pytest.mark.parametrize("theme", THEMES, ids=NAMES)
def test_text_can_be_read_in_few_colours(theme: Theme, system: str) -> None:
    fitted = for_terminal(theme, system)
    colors = {name: value for name, value in fitted.to_color_system().generate().items() if value.startswith("#")}
    for ground in ("background", "surface", "panel"):
        under = downgraded(colors[ground], system)
        faint = Color.parse(colors[ground][:7]).blend(Color.parse(colors["foreground"][:7]), 0.7).hex
        # 16 colours have few greys: bars show faint text, in bold or beside what is not faint.
        least = 3.0 if system == "standard" and ground == "panel" else 4.5
        assert contrast(downgraded(colors["foreground"], system), under) >= 4.5
        assert contrast(downgraded(faint, system), under) >= least, ground
        if ground == "panel" and system == "standard":
            continue
        for name in ("primary", "secondary", "accent", "error", "warning"):
            assert contrast(downgraded(colors[name], system), under) >= 4.5, (ground, name)
    cursor = [downgraded(fitted.variables[f"block-cursor-{part}"], system) for part in ("background", "foreground")]
    assert contrast(*cursor) >= 4.5
    assert cursor[0] != downgraded(colors["panel"], system)  # the popup has the ground of a bar


@pytest.mark.parametrize(("system", "is_changed"), [("truecolor", False), (None, False), ("256", True), ("standard", True)])
def test_a_theme_follows_the_terminal(system: str | None, is_changed: bool) -> None:
    nord = BUILTIN_THEMES["nord"]
    assert (for_terminal(nord, system) != nord) is is_changed


def test_the_app_fits_every_theme_to_its_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("textual.constants.COLOR_SYSTEM", "256")
    app = fake_app()
    assert app.console.color_system == "256"
    for theme in app.available_themes.values():
        assert theme.ansi or len({downgraded(g, "256") for g in grounds_of(theme).values()}) == 3, theme.name


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


@pytest.mark.parametrize("system", ["truecolor", "256", "standard"])
@pytest.mark.parametrize("theme", ["dark", "light"])
async def test_highlighted_rows_can_be_read(theme: str, system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("textual.constants.COLOR_SYSTEM", system)
    app = fake_app(settings={"chat.theme": theme})
    async with app.run_test(size=(110, 30)) as pilot:
        await say(pilot, "hello")
        screen = app.chat_screen
        await pilot.press("/")
        await settle(pilot)
        assert screen.composer.popup.is_open
        check_highlighted(screen.composer.popup)
        await pilot.press("backspace")
        check_highlighted(screen.sidebar.listing)


async def test_what_is_drawn_while_the_theme_changes_keeps_no_colours_of_the_old_one() -> None:
    """The name of the theme is there a moment before its colours."""
    app = fake_app()
    async with app.run_test(size=(110, 30)) as pilot:
        await say(pilot, "hello")
        view = app.chat_screen.query(LinesView).last()
        for theme in (LIGHT, DARK):
            app.theme = theme.name
            view._look("$text-primary")
            await settle(pilot)
            assert view._look("$text-primary").foreground == Color.parse(theme.variables["text-primary"])


def check_highlighted(options: OptionList) -> None:
    """Require a contrast of 4.5 for every text of the highlighted row."""
    assert options.highlighted is not None
    row = options.render_line(options._option_to_index[options.get_option_at_index(options.highlighted)])
    inks = {
        (part.text, contrast(Color.from_rich_color(part.style.color), Color.from_rich_color(part.style.bgcolor)))
        for part in row
        if part.text.strip() and part.style is not None
    }
    assert inks and all(found >= 4.5 for _, found in inks), inks
