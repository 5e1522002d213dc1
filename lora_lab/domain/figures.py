"""Numbers as a person reads them: three or four digits, a unit, no exponent where none is needed."""

from __future__ import annotations

import math
from typing import Final

NOT_THERE: Final = "—"
PENDING: Final = "…"
_PREFIXES: Final = ("", "k", "M", "G", "T", "P", "E")
_BARS: Final = "▁▂▃▄▅▆▇█"
_AGES: Final = ((60, 1, "s"), (3600, 60, "min"), (86400, 3600, "h"), (604800, 86400, "d"), (2629800, 604800, "w"))


def number(value: float | None, digits: int = 4) -> str:
    """Show a number with `digits` significant digits.

    Examples
    --------
    >>> number(12.40516), number(0.00123456), number(1234567.0), number(3.0), number(None)
    ('12.41', '0.001235', '1.235e6', '3.000', '—')
    """
    if value is None:
        return NOT_THERE
    if not math.isfinite(value):
        return "∞" if value > 0 else "-∞" if value < 0 else "NaN"
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(float(f"{value:.{digits - 1}e}"))))
    if -4 <= exponent < digits + 1:
        return f"{value:.{max(0, digits - 1 - exponent)}f}"
    mantissa, _, power = f"{value:.{digits - 1}e}".partition("e")
    return f"{mantissa}e{int(power)}"


def fitted(value: float | None, width: int) -> str:
    """Show a number with four significant digits, or three, or as many as `width` cells hold with an exponent.

    Examples
    --------
    >>> fitted(12.40516, 7), fitted(0.00123456, 7), fitted(0.0000123456, 6)
    ('12.41', '0.00123', '1.2e-5')
    """
    for digits in (4, 3):
        shown = number(value, digits)
        if len(shown) <= width:
            return shown
    scientific = (f"{value:.{digits}e}".partition("e") for digits in (2, 1, 0))
    short = [f"{mantissa}e{int(power)}" for mantissa, _, power in scientific]
    return next((text for text in short if len(text) <= width), short[-1])


def compact(value: float | None) -> str:
    """Show a number that is mostly a whole one without trailing zeros: alpha, scaling.

    Examples
    --------
    >>> compact(16.0), compact(0.5), compact(1.4142135623), compact(None)
    ('16', '0.5', '1.414', '—')
    """
    return NOT_THERE if value is None else f"{value:.4g}"


def count(value: int | None) -> str:
    """Show how many there are, with a decimal prefix.

    Examples
    --------
    >>> count(448), count(2_031_616), count(88_100_000), count(7_000_000_000)
    ('448', '2.03 M', '88.1 M', '7.00 G')
    """
    return _prefixed(value, "", 1)


def size(value: int | None) -> str:
    """Show a number of bytes, with a decimal prefix.

    Examples
    --------
    >>> size(512), size(8_130_000), size(999_999)
    ('512 B', '8.13 MB', '1.00 MB')
    """
    return _prefixed(value, "B", 0)


def _prefixed(value: int | None, unit: str, plain_from: int) -> str:
    if value is None:
        return NOT_THERE
    if value < (10_000 if plain_from else 1000):
        return f"{value} {unit}".rstrip()
    scaled, step = float(value), 0
    while float(f"{scaled:.3g}") >= 1000 and step < len(_PREFIXES) - 1:
        scaled, step = scaled / 1000, step + 1
    decimals = 2 - math.floor(math.log10(float(f"{scaled:.3g}")))
    return f"{scaled:.{max(0, decimals)}f} {_PREFIXES[step]}{unit}".rstrip()


def age(seconds: float | None) -> str:
    """Show how long ago something was.

    Examples
    --------
    >>> age(5), age(7300), age(None)
    ('5 s', '2 h', '—')
    """
    if seconds is None:
        return NOT_THERE
    for limit, unit, name in _AGES:
        if seconds < limit:
            return f"{max(0, int(seconds // unit))} {name}"
    months = seconds / 2629800
    return f"{int(months)} mo" if months < 24 else f"{int(months / 12)} y"


def duration(seconds: float | None) -> str:
    """Show a time to wait.

    Examples
    --------
    >>> duration(4.2), duration(75), duration(None)
    ('0:04', '1:15', '—')
    """
    if seconds is None:
        return NOT_THERE
    whole = math.ceil(seconds) if seconds > 59.5 else round(seconds)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def bars(values: list[float | None]) -> str:
    """Draw values as a row of bars, from zero to the largest; what is undefined is blank.

    Examples
    --------
    >>> bars([0.0, 0.5, 1.0, None])
    '▁▄█ '
    """
    largest = max((value for value in values if value is not None and math.isfinite(value)), default=0.0)
    return "".join(_bar(value, largest) for value in values)


def _bar(value: float | None, largest: float) -> str:
    if value is None or not math.isfinite(value):
        return " "
    share = value / largest if largest > 0 else 0.0
    return _BARS[max(0, min(len(_BARS) - 1, math.ceil(share * len(_BARS)) - 1))]


def bar(share: float, width: int) -> str:
    """Draw a horizontal bar of `share` (0 … 1) of `width` cells, in eighths of a cell.

    Examples
    --------
    >>> bar(0.5, 4), bar(0.3, 4)
    ('██', '█▎')
    """
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    return "█" * (eighths // 8) + ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")[eighths % 8]


def plural(amount: int, one: str, many: str = "") -> str:
    """Count things in words.

    Examples
    --------
    >>> plural(1, "adapter"), plural(3, "base model"), plural(0, "job")
    ('1 adapter', '3 base models', '0 jobs')
    """
    return f"{amount} {one if amount == 1 else many or one + 's'}"
