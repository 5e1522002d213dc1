"""Many modules in one sentence: how many, and the first few by name; one that is left out, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lora_lab.domain.report import Finding
from lora_lab.errors import quoted

if TYPE_CHECKING:
    from collections.abc import Iterable, Sized

    from lora_lab.errors import NumericalError

_MOST: Final = 3


def summarised(names: Iterable[str]) -> str:
    """The first three of `names`, and how many more there are.

    Examples
    --------
    >>> summarised(["q", "k", "v", "o", "up"])
    'q, k, v and 2 more'
    """
    listed = list(names)
    if len(listed) > _MOST:
        return f"{', '.join(listed[:_MOST])} and {len(listed) - _MOST} more"
    return ", ".join(listed)


def counted(items: Sized, one: str, many: str) -> str:
    """How many `items` there are, with the word for one or for many.

    Examples
    --------
    >>> counted([1], "module", "modules"), counted([1, 2], "module", "modules")
    ('1 module', '2 modules')
    """
    return f"{len(items)} {one if len(items) == 1 else many}"


def fault_finding(module: str, error: NumericalError) -> Finding:
    """That one module could not be computed with."""
    return Finding("not_finite", f"{error.message} The module {quoted(module)} is left out.", module)
