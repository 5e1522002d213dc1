"""Sets of strengths as a person types them: one for each adapter, and a grid where one of them is a range."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from itertools import product
from typing import TYPE_CHECKING, Final

from lora_lab.errors import LoraLabError, quoted

if TYPE_CHECKING:
    from collections.abc import Sequence

# A step too small is noticed before that many adapters are written.
_MOST: Final = 256
_EXAMPLE: Final = "For example: 0.7,0.3 for two adapters, or 0:1:0.25 for one at 0, 0.25, 0.5, 0.75 and 1."


def sets_of_strengths(texts: Sequence[str]) -> list[tuple[float, ...]]:
    """Read sets of strengths; each of their parts is a number or ``FROM:TO:STEP``, and ranges are crossed.

    Raises
    ------
    LoraLabError
        a part is neither, a step leads nowhere, or there are more than 256 sets.

    Examples
    --------
    >>> sets_of_strengths(["0.7,0.3", "0:1:0.5,1"])
    [(0.7, 0.3), (0.0, 1.0), (0.5, 1.0), (1.0, 1.0)]
    """
    found: list[tuple[float, ...]] = []
    for text in texts:
        choices = [_choices(part.strip(), text) for part in text.split(",")]
        for one in product(*choices):
            if len(found) == _MOST:
                raise LoraLabError(f"These are more than {_MOST} sets of strengths.", hint="Choose a larger step.")
            found.append(tuple(float(number) for number in one))
    return found


def _choices(part: str, text: str) -> list[Decimal]:
    numbers = []
    for piece in part.split(":"):
        try:
            number = Decimal(piece.strip())
        except InvalidOperation:
            number = Decimal("nan")
        if not number.is_finite():
            raise LoraLabError(f"{quoted(piece)} in {quoted(text)} is no strength, expected a number.", hint=_EXAMPLE)
        numbers.append(number)
    if len(numbers) == 1:
        return numbers
    if len(numbers) != 3:
        raise LoraLabError(f"{quoted(part)} is no range, expected FROM:TO:STEP.", hint=_EXAMPLE)
    first, last, step = numbers
    if step == 0 or (last - first) * step < 0:
        raise LoraLabError(f"No step of {step} leads from {first} to {last} in {quoted(text)}.", hint=_EXAMPLE)
    count = min(int((last - first) / step), _MOST) + 1
    return [first + step * place for place in range(count)]
