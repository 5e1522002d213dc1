"""The patterns of an adapter's configuration, with PEFT's meaning and a time limit.

``target_modules``, ``exclude_modules``, ``rank_pattern`` and ``alpha_pattern`` are regular expressions from a file;
``([\\w.]+)+!`` on a long name would keep a backtracking engine busy for hours. Every match here has a time limit.

Source: PEFT 0.21, ``utils/other.py:get_pattern_key`` and ``tuners/tuners_utils.py:check_target_module_exists``.
"""

from __future__ import annotations

import re
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING, Any, TypeVar

from lora_lab.errors import AdapterError, quoted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

T = TypeVar("T")

_LONGEST_PATTERN = 10_000
_MATCH_SECONDS = 0.25
# ((a{1000}){1000}){1000} is compiled to as many nodes as it has repetitions: memory, not time, would run out.
_COUNT = re.compile(r"\{(\d*),?(\d*)\}")
_MOST_REPETITIONS = 10_000


def matches(pattern: str, module: str) -> bool:
    """Whether PEFT would apply the pattern key `pattern` to `module`: the whole name, or its end after a dot.

    Raises
    ------
    AdapterError
        the pattern is no regular expression, or takes longer than a quarter of a second on this name.

    Examples
    --------
    >>> matches("q_proj", "model.layers.0.self_attn.q_proj"), matches("proj", "a.q_proj")
    (True, False)
    """
    return _fullmatch(rf"(?:.*\.)?(?:{pattern})", pattern, module)


def pattern_value(patterns: Mapping[str, T], module: str, default: T) -> T:
    """Value of the first key of `patterns` that matches `module`, in the order of the file; else `default`."""
    for pattern, value in patterns.items():
        if matches(pattern, module):
            return value
    return default


def is_target(module: str, target_modules: str | Sequence[str], exclude_modules: str | Sequence[str] = ()) -> bool:
    """Whether `module` is a target: a string is a regular expression over the whole name, a list holds name ends."""
    if exclude_modules and _names(module, exclude_modules):
        return False
    return _names(module, target_modules)


def _names(module: str, named: str | Sequence[str]) -> bool:
    if isinstance(named, str):
        return _fullmatch(named, named, module)
    return any(module == name or module.endswith(f".{name}") for name in named)


def _fullmatch(expression: str, shown: str, module: str) -> bool:
    try:
        return _compiled(expression, shown).fullmatch(module, timeout=_MATCH_SECONDS) is not None
    except TimeoutError:
        raise AdapterError(
            f"The pattern {quoted(shown)} takes longer than {_MATCH_SECONDS} s to match the module {quoted(module)}.",
            hint="Write the module names out in the adapter's configuration.",
        ) from None


@lru_cache(maxsize=256)
def _compiled(expression: str, shown: str) -> Any:
    import regex  # loaded when the first pattern is met

    if len(expression) > _LONGEST_PATTERN:
        raise AdapterError(
            f"A pattern of {len(expression)} characters, {quoted(shown)}, exceeds the limit of {_LONGEST_PATTERN}."
        )
    counts = (max(int(most or 0), int(least or 0), 1) for least, most in _COUNT.findall(expression))
    if prod(counts) > _MOST_REPETITIONS:
        raise AdapterError(f"The pattern {quoted(shown)} repeats itself more than {_MOST_REPETITIONS} times.")
    try:
        return regex.compile(expression)
    except (regex.error, RecursionError, OverflowError, MemoryError) as error:
        raise AdapterError(
            f"The pattern {quoted(shown)} is not a regular expression: {error}.",
            hint="Mend it in the adapter's configuration.",
        ) from None
