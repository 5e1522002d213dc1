"""Words of the command that does the same as a form."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

_SWITCHES: Final = {
    "offline": "--offline",
    "allow_pickle": "--allow-pickle",
    "follow_symlinks": "--follow-symlinks",
}
_VALUES: Final[tuple[tuple[str, Any], ...]] = (("device", "auto"), ("seed", 0), ("alpha", None))


def session_words(session: Mapping[str, Any]) -> list[str]:
    """Options that make a command's session like this one.

    Parameters
    ----------
    session : keyword arguments of Session

    Examples
    --------
    >>> session_words({"seed": 3, "offline": True, "device": "auto"})
    ['--offline', '--seed', '3']
    """
    words = [flag for name, flag in _SWITCHES.items() if session.get(name)]
    for name, usual in _VALUES:
        value = session.get(name, usual)
        if value != usual:
            words += [f"--{name}", str(value)]
    return words
