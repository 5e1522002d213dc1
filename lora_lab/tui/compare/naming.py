"""What to call two adapters."""

from __future__ import annotations

from pathlib import PurePath


def pair_names(locators: tuple[str, str]) -> tuple[str, str]:
    """The last part of each locator, with the one before where both end alike.

    Examples
    --------
    >>> pair_names(("runs/sql", "runs/chat")), pair_names(("seed0/out", "seed1/out"))
    (('sql', 'chat'), ('seed0/out', 'seed1/out'))
    """
    first, second = (PurePath(locator) for locator in locators)
    count = 2 if first.name == second.name and first != second else 1
    return ("/".join(first.parts[-count:]) or str(first), "/".join(second.parts[-count:]) or str(second))


def pair_name(names: tuple[str, str]) -> str:
    """Both in one word, for a file or a job."""
    return f"{names[0]}-{names[1]}"
