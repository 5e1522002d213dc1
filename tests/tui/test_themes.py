"""Themes: contrast on the selected row, and variables that every theme has."""

from __future__ import annotations

import pytest
from textual.color import Color
from textual.theme import BUILTIN_THEMES
from tui.fakes import make_app, ready

from lora_lab.errors import LoraLabError
from lora_lab.tui import themes

ALL = sorted({*BUILTIN_THEMES, *(theme.name for theme in themes.OWN_THEMES)})


def test_contrast_is_wcag() -> None:
    """Known ratios: 21 for black on white, 4.54 for #767676 on white, 1 for a colour on itself."""
    white = Color.parse("white")
    assert themes.contrast(Color.parse("black"), white) == pytest.approx(21)
    assert themes.contrast(Color.parse("#767676"), white) == pytest.approx(4.54, abs=0.005)
    assert themes.contrast(white, white) == 1


def test_unreadable_row_is_mended() -> None:
    """Grey on grey becomes black or white; a good pair is left alone."""
    bad = {"surface": "#202020", "block-cursor-background": "#777777", "block-cursor-foreground": "#808080"}
    mended = themes.readable(bad)
    text, behind = Color.parse(mended["block-cursor-foreground"]), Color.parse("#777777")
    assert themes.contrast(text, behind) >= themes.LEAST_CONTRAST
    good = {**bad, "block-cursor-foreground": "#ffffff", "block-cursor-background": "#103040"}
    assert themes.readable(good) == good


async def test_every_theme_draws_a_readable_row() -> None:
    """The pair on screen, not the pair intended: text and background of the cursor's line in every theme."""
    app = make_app()
    async with app.run_test(size=(120, 36)) as pilot:
        await ready(pilot)
        table = app.screen.table  # type: ignore[attr-defined]
        for name in ALL:
            app.theme = name
            await pilot.pause()
            if app.current_theme.ansi:  # colours of the terminal's own palette: not ours to judge
                continue
            style = table.get_component_rich_style("labtable--cursor")
            assert style.color is not None, name
            assert style.bgcolor is not None, name
            text = Color.from_rich_color(style.color)
            behind = Color.from_rich_color(style.bgcolor)
            assert themes.contrast(text, behind) >= themes.LEAST_CONTRAST, name


@pytest.mark.parametrize("theme", themes.OWN_THEMES, ids=lambda theme: theme.name)
def test_own_text_colours_can_be_read(theme: object) -> None:
    """Foreground, and the colours text is written in, on the theme's backgrounds."""
    variables = theme.to_color_system().generate()  # type: ignore[attr-defined]
    for behind in ("background", "surface", "panel"):
        for text in ("foreground", "text-primary", "text-accent", "text-warning", "text-error", "text-success"):
            ratio = themes.contrast(Color.parse(variables[text]), Color.parse(variables[behind]))
            assert ratio >= themes.LEAST_CONTRAST, (text, behind, ratio)
    defaults = themes.variable_defaults(dark=theme.dark)  # type: ignore[attr-defined]
    for colour in defaults.values():
        assert themes.contrast(Color.parse(colour), Color.parse(variables["background"])) >= themes.LEAST_CONTRAST


async def test_picker_previews_keeps_and_undoes() -> None:
    """The theme changes under the cursor, goes back on esc, stays on enter and is remembered."""
    app = make_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await ready(pilot)
        await pilot.press("t", "j")
        assert app.theme == "lora-lab-light"
        await pilot.press("escape")
        assert app.theme == "lora-lab"
        await pilot.press("t", "j", "enter")
        assert app.theme == "lora-lab-light"
        assert app.state.get("theme", "") == "lora-lab-light"
    assert make_app().theme == "lora-lab-light"
    assert make_app(state=False).theme == "lora-lab"
    assert make_app(theme="nord").theme == "nord"


def test_unknown_theme_names_those_there_are() -> None:
    """A typing error is answered with the list."""
    with pytest.raises(LoraLabError, match="There is no theme 'noord'") as caught:
        make_app(theme="noord")
    assert "nord" in caught.value.hint
