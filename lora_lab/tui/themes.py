"""Two themes of our own, colours for plots, and a guard that keeps the selected row readable in any theme."""

from __future__ import annotations

from typing import Final

from textual.color import Color
from textual.theme import Theme

DEFAULT_THEME: Final = "lora-lab"
#: Contrast of text on the selected row (WCAG 2 level AA).
LEAST_CONTRAST: Final = 4.5

LAB_DARK: Final = Theme(
    name="lora-lab",
    primary="#5fb3b3",
    secondary="#8f8bd8",
    accent="#e3a857",
    foreground="#d5dce6",
    background="#10141b",
    surface="#151a23",
    panel="#1c2330",
    success="#7fc58f",
    warning="#e6b450",
    error="#ef7f86",
    dark=True,
    variables={
        "block-cursor-background": "#1f4e58",
        "block-cursor-foreground": "#f2fafa",
        "block-cursor-text-style": "bold",
        "block-cursor-blurred-background": "#243040",
        "block-cursor-blurred-foreground": "#d5dce6",
        "footer-background": "#151a23",
        "footer-key-foreground": "#e3a857",
        "input-selection-background": "#5fb3b3 35%",
    },
)

LAB_LIGHT: Final = Theme(
    name="lora-lab-light",
    primary="#1c6f78",
    secondary="#5b52a8",
    accent="#9a5410",
    foreground="#252a31",
    background="#f5f3ee",
    surface="#fbfaf7",
    panel="#e8e4db",
    success="#2c7a42",
    warning="#855d00",
    error="#b02a3c",
    dark=False,
    variables={
        "block-cursor-background": "#1c6f78",
        "block-cursor-foreground": "#ffffff",
        "block-cursor-text-style": "bold",
        "block-cursor-blurred-background": "#d5dedd",
        "block-cursor-blurred-foreground": "#252a31",
        "footer-background": "#e8e4db",
        "footer-key-foreground": "#9a5410",
        "input-selection-background": "#1c6f78 25%",
    },
)

OWN_THEMES: Final = (LAB_DARK, LAB_LIGHT)

_SERIES_DARK: Final = ("#5fb3b3", "#e3a857", "#a99bf0", "#7fc58f", "#ef7f86", "#6fa8ef")
_SERIES_LIGHT: Final = ("#1c6f78", "#9a5410", "#5b52a8", "#2c7a42", "#b02a3c", "#2458a6")


def variable_defaults(*, dark: bool) -> dict[str, str]:
    """Variables beyond Textual's that our styles name; a theme may override them.

    ``series-1`` … ``series-6`` colour the curves of a plot in order; ``mark-a`` and ``mark-b`` the two marked adapters.
    """
    series = _SERIES_DARK if dark else _SERIES_LIGHT
    colours = {f"series-{index}": colour for index, colour in enumerate(series, 1)}
    return {**colours, "mark-a": series[0], "mark-b": series[1]}


def readable(variables: dict[str, str]) -> dict[str, str]:
    """Replace the selected row's text colour where `variables` give it less contrast than 4.5 to 1.

    A translucent background is judged as it will look on the theme's surface.
    """
    mended = dict(variables)
    for row in ("block-cursor", "block-cursor-blurred"):
        try:
            surface = Color.parse(variables["surface"])
            behind = surface + Color.parse(variables[f"{row}-background"])
            text = _text_colour(variables[f"{row}-foreground"], behind)
        except (ValueError, KeyError):  # a colour of the terminal's own palette: only the terminal knows it
            continue
        if surface.ansi is not None or behind.ansi is not None or surface.a < 1:
            continue
        if contrast(text, behind) < LEAST_CONTRAST:
            mended[f"{row}-foreground"] = _best_text(behind).hex
    return mended


def _best_text(behind: Color) -> Color:
    return max((Color(0, 0, 0), Color(255, 255, 255)), key=lambda colour: contrast(colour, behind))


def contrast(text: Color, behind: Color) -> float:
    """Ratio (L₁ + 0.05) / (L₂ + 0.05) of relative luminances, 1 … 21 (WCAG 2.2, relative luminance)."""
    high, low = sorted((_luminance(text), _luminance(behind)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: Color) -> float:
    channels = (value / 255 for value in colour.rgb)
    red, green, blue = (value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _text_colour(value: str, behind: Color) -> Color:
    if value.startswith("auto"):  # black or white at some opacity
        opacity = float(value.removeprefix("auto").strip().removesuffix("%") or 100) / 100
        return behind + behind.get_contrast_text(opacity)
    return behind + Color.parse(value)
