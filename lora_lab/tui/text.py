"""Numbers as a person reads them, and texts cut to a width."""

from __future__ import annotations

from functools import lru_cache

from rich.cells import cell_len, set_cell_size

from lora_lab.domain.figures import (
    NOT_THERE,
    PENDING,
    age,
    bar,
    bars,
    compact,
    count,
    duration,
    fitted,
    number,
    plural,
    size,
)

__all__ = [
    "NOT_THERE",
    "PENDING",
    "age",
    "bar",
    "bars",
    "compact",
    "count",
    "duration",
    "fit",
    "fitted",
    "number",
    "plural",
    "size",
    "span",
]


def span(low: int | None, high: int | None) -> str:
    """A number, or the ends where there are two; nothing where it is not known.

    Examples
    --------
    >>> span(8, 8), span(4, 16), span(None, None)
    ('8', '4…16', '')
    """
    if low is None:
        return ""
    return str(low) if low == high else f"{low}…{high}"


@lru_cache(maxsize=4096)
def fit(text: str, width: int, is_right: bool = False) -> str:
    """Cut `text` to `width` cells, with an ellipsis, or pad it to them."""
    length = cell_len(text)
    if length > width:
        return set_cell_size(text, width - 1) + "…" if width > 1 else "…"[:width]
    padding = " " * (width - length)
    return padding + text if is_right else text + padding
