"""JSON as the standard has it: no key twice, no NaN, nothing so deep or so long that it hurts whoever walks it.

Two readers that disagree on a document are a way to show one thing and load another; what is ambiguous is refused.
"""

from __future__ import annotations

import json
from typing import Any, Final, NoReturn

from lora_lab.errors import quoted

DEEPEST: Final = 32
_MOST_DIGITS: Final = 100


class JsonRefusedError(ValueError):
    """Why a text is refused, worded as the rest of a sentence that begins with the file's name."""


def parse_json(raw: bytes, *, most_values: int, encoding: str = "utf-8-sig") -> Any:
    """Parse `raw`, or say in half a sentence why not.

    Parameters
    ----------
    raw : one whole document; a byte order mark is skipped under the default encoding
    most_values : most commas and opening brackets, counted before anything is built
    encoding : ``utf-8`` where a byte order mark is not allowed

    Raises
    ------
    JsonRefusedError
        not UTF-8, not JSON, a key twice, NaN or an infinity, a number of more than 100 digits, half a surrogate
        pair, more than 32 levels.

    Examples
    --------
    >>> parse_json(b'{"r": 8}', most_values=10)
    {'r': 8}
    >>> parse_json(b'{"r": 8, "r": 16}', most_values=10)
    Traceback (most recent call last):
    lora_lab.storage.strict_json.JsonRefusedError: holds the key 'r' twice
    """
    text = decode(raw, encoding)
    if not text.strip():
        raise JsonRefusedError("holds nothing but blanks")
    require_few_values(raw, most_values)
    document = run_decoder(_STRICT, text)
    _require_shallow(document)
    if b"\\u" in raw:  # only an escape can spell half a surrogate pair: the bytes are UTF-8
        _require_texts(document)
    return document


def decode(raw: bytes, encoding: str = "utf-8") -> str:
    """Text of `raw`; JsonRefusedError where it is not UTF-8."""
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        raise JsonRefusedError(f"is not UTF-8 text (byte {error.start})") from None


def require_few_values(raw: bytes, most: int) -> None:
    """Refuse by counting separators, which bound the memory that parsing takes, before parsing."""
    count = raw.count(b",") + raw.count(b"[") + raw.count(b"{")
    if count > most:
        raise JsonRefusedError(f"holds about {count} values, more than the limit of {most}")


def run_decoder(decoder: json.JSONDecoder, text: str) -> Any:
    """Decode `text`, with every way to fail told as a JsonRefusedError."""
    try:
        return decoder.decode(text)
    except RecursionError:
        raise JsonRefusedError(f"is nested deeper than {DEEPEST} levels") from None
    except json.JSONDecodeError as error:
        raise JsonRefusedError(f"is not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except JsonRefusedError:
        raise
    except ValueError:  # a run of digits beyond the interpreter's own limit
        raise JsonRefusedError(f"holds a number of more than {_MOST_DIGITS} digits") from None


def refuse_constant(literal: str) -> NoReturn:
    """Refuse NaN and the infinities, which Python would read and the standard does not know."""
    raise JsonRefusedError(f"holds {literal}, which JSON does not have")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise JsonRefusedError(f"holds the key {quoted(key)} twice")
        seen.add(key)
    raise AssertionError  # fewer keys than pairs means that one repeats


def _integer(digits: str) -> int | float:
    if len(digits) > _MOST_DIGITS:
        raise JsonRefusedError(f"holds a number of {len(digits)} digits")
    # Minus zero is no integer: other readers take it for the floating-point number that it is.
    return -0.0 if digits == "-0" else int(digits)


def _real(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise JsonRefusedError(f"holds {quoted(digits)}, a number beyond every floating-point range")
    return value


def _require_shallow(document: Any) -> None:
    """Walk the containers level by level, not too deep."""
    level = [document]
    for _ in range(DEEPEST + 1):
        following: list[Any] = []
        for value in level:
            children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
            following += [child for child in children if isinstance(child, (dict, list))]
        if not following:
            return
        level = following
    raise JsonRefusedError(f"is nested deeper than {DEEPEST} levels")


def _require_texts(document: Any) -> None:
    """Walk the document for a text that cannot be written as UTF-8."""
    waiting = [document]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            _require_text(value)
        elif isinstance(value, dict):
            waiting += value.keys()
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def _require_text(text: str) -> None:
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError:
        raise JsonRefusedError(f"holds half of a surrogate pair in {quoted(text)}") from None


_STRICT: Final = json.JSONDecoder(
    object_pairs_hook=_unique, parse_constant=refuse_constant, parse_int=_integer, parse_float=_real
)
