"""Module paths: natural order, layer and projection."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_DIGITS = re.compile(r"([0-9]+)")
# int() of a longer run costs more than linear time, and no model has so many layers.
_LONGEST_NUMBER = 18


def natural_key(module: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key that puts layer 2 before layer 10.

    Examples
    --------
    >>> sorted(["h.10.q", "h.2.q", "h.2.k"], key=natural_key)
    ['h.2.k', 'h.2.q', 'h.10.q']
    """
    parts = _DIGITS.split(module)
    return tuple(
        (1, int(part), part) if part.isdigit() and part.isascii() and len(part) <= _LONGEST_NUMBER else (0, 0, part)
        for part in parts
    )


def layer_of(module: str) -> int | None:
    """Number of the layer that `module` belongs to: its first all-digit component.

    Examples
    --------
    >>> layer_of("model.layers.11.self_attn.v_proj"), layer_of("lm_head")
    (11, None)
    """
    for part in module.split("."):
        if part.isascii() and part.isdigit() and len(part) <= _LONGEST_NUMBER:
            return int(part)
    return None


def projection_of(module: str) -> str:
    """Last component that is not a number: what kind of matrix this is in every layer.

    Examples
    --------
    >>> projection_of("model.layers.11.self_attn.v_proj")
    'v_proj'
    """
    for part in reversed(module.split(".")):
        if not part.isdigit():
            return part
    return module


def select_modules(modules: Sequence[str], globs: Sequence[str]) -> tuple[str, ...]:
    """Those of `modules` that one of `globs` matches, whole or from a dot on; all when there are no globs.

    Examples
    --------
    >>> select_modules(["layers.0.q_proj", "layers.0.v_proj"], ["*.q_proj"])
    ('layers.0.q_proj',)
    >>> select_modules(["layers.0.q_proj", "layers.0.v_proj"], ["v_proj"])
    ('layers.0.v_proj',)
    """
    if not globs:
        return tuple(modules)
    return tuple(
        module
        for module in modules
        if any(fnmatchcase(module, glob) or fnmatchcase(module, f"*.{glob}") for glob in globs)
    )
