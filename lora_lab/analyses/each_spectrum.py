"""The singular values of module after module; one that cannot be computed does not stop the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab.domain.progress import stop_if_cancelled
from lora_lab.errors import NumericalError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lora_lab.domain.adapter import Delta
    from lora_lab.extension.contracts import AnalysisContext
    from lora_lab.linalg.spectra import Pair


def each_spectrum(
    deltas: Sequence[Delta], context: AnalysisContext, failures: dict[str, NumericalError]
) -> Iterator[tuple[Delta, list[float] | None]]:
    """Yield the singular values of each delta, in order, while the next ones are being read and decomposed.

    Parameters
    ----------
    failures : takes what is wrong with a module that holds NaN or infinity, or whose product exceeds float64; its
        values are None
    """
    from lora_lab.linalg.streaming import stream_singular_values

    place = 0
    while place < len(deltas):
        try:
            for pair, singular_values in stream_singular_values(
                _pairs(deltas[place:], context, failures), device=context.device
            ):
                while deltas[place].module != pair.name:  # those in between could not be read
                    yield deltas[place], None
                    place += 1
                yield deltas[place], singular_values.tolist()
                place += 1
            for delta in deltas[place:]:
                yield delta, None
            return
        except NumericalError as error:  # a product beyond float64, told when its turn comes
            while deltas[place].module in failures:
                yield deltas[place], None
                place += 1
            failures[deltas[place].module] = error
            yield deltas[place], None
            place += 1


def _pairs(deltas: Sequence[Delta], context: AnalysisContext, failures: dict[str, NumericalError]) -> Iterator[Pair]:
    """Read the factors in order; those that are not finite are left out and named in `failures`."""
    from lora_lab.linalg.spectra import Pair
    from lora_lab.linalg.threads import advanced_alone

    place = 0
    while place < len(deltas):
        try:
            for delta, factors in advanced_alone(context.reader.factors_of(deltas[place:])):
                stop_if_cancelled(context.observer)
                place += 1
                yield Pair(delta.module, factors.lora_A, factors.lora_B, factors.scaling)
        except NumericalError as error:
            failures[deltas[place].module] = error
            place += 1
