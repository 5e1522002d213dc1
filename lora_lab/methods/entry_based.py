"""What methods that decide about single entries have in common: their parameters, and the way through the algebra."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, ClassVar, Final

from lora_lab.domain.parameters import Parameter, ParameterKind
from lora_lab.domain.progress import stop_if_cancelled
from lora_lab.errors import CompatibilityError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from lora_lab.extension.changes import Change
    from lora_lab.extension.contracts import Combination, Factors, MergeContext
    from lora_lab.linalg.changes import Rows
    from lora_lab.linalg.spectra import Pair

# Where so many of the first numbers of two factors are equal, the factors are.
_COMPARED: Final = 64
DENSITY: Final = Parameter("density", "Density: share of the entries that is kept", ParameterKind.NUMBER, 0.5, 0.0, 1.0)
MAJORITY: Final = Parameter(
    "majority", "What elects a sign", ParameterKind.CHOICE, "total", choices=("total", "frequency")
)
ELECTION: Final = Parameter(
    "election", "Signs elected before or after weighting", ParameterKind.CHOICE, "before", choices=("before", "after")
)
SPACE: Final = Parameter(
    "space", "Entries of ΔW, or of the core", ParameterKind.CHOICE, "delta", choices=("delta", "core")
)


class EntryBased:
    """A method that keeps some entries of each update, and sums what is kept or what agrees with an elected sign.

    A subclass names itself, how it keeps (``sparsity``), and whether signs are elected: ``election`` is ``before`` or
    ``after`` weighting, the parameter's value where that is declared, or None, which sums.
    """

    id: ClassVar[str]
    title: ClassVar[str]
    summary: ClassVar[str]
    reference: ClassVar[str]
    parameters: ClassVar[tuple[Parameter, ...]]
    sparsity: ClassVar[str]
    election: ClassVar[str | None] = None
    is_low_rank: ClassVar[bool] = False

    def combine(self, factors: Sequence[Factors], strengths: Sequence[float], context: MergeContext) -> Combination:
        """Factors of the combination of one module, of the rank or the energy that `context` says."""
        return self.combine_changes(factors, strengths, context)

    def combine_changes(
        self, changes: Sequence[Factors | Change], strengths: Sequence[float], context: MergeContext
    ) -> Combination:
        """The same of changes that have no factors, in the space of ΔW."""
        from lora_lab.extension.contracts import Combination, Factors
        from lora_lab.linalg.consensus import Election, Majority
        from lora_lab.linalg.entrywise import EntryMethod, Space, Sparsity, combine_entries

        parameters = context.parameters
        chosen = parameters.get("election", self.election)
        method = EntryMethod(
            Sparsity(self.sparsity),
            density=parameters.get("density", 1.0),
            gamma=parameters.get("gamma", 0.0),
            epsilon=parameters.get("epsilon", 0.0),
            election=None if chosen is None else Election(chosen),
            majority=Majority(parameters.get("majority", "total")),
            space=Space(parameters.get("space", "delta")),
            seed=context.seed,
        )
        found = combine_entries(
            parts_of(changes, context.module),
            strengths,
            method,
            rank=context.rank,
            energy=context.energy,
            look=partial(stop_if_cancelled, context.observer),
        )
        result = Factors(found.lora_A, found.lora_B, 1.0, factors_of(changes[0]).is_transposed)
        return Combination(result, found.norm, found.error)


def factors_of(change: Factors | Change) -> Factors:
    """The factors, or those that a change is made with."""
    from lora_lab.extension.contracts import Factors

    return change if isinstance(change, Factors) else change.factors


def parts_of(changes: Sequence[Factors | Change], name: str = "ΔW") -> list[Pair | Rows]:
    """The same as what algebra works on; raises as :func:`pairs_of`."""
    from lora_lab.extension.contracts import Factors
    from lora_lab.linalg.changes import Rows

    pairs = pairs_of([factors_of(change) for change in changes], name)
    return [
        pair
        if isinstance(change, Factors)
        else Rows(
            name,
            (pair.lora_B.shape[0], pair.lora_A.shape[1]),
            change.rows,
            pair.lora_A.shape[0],
            (pair.lora_A, pair.lora_B, change.magnitude),
            pair.scaling,
        )
        for change, pair in zip(changes, pairs, strict=True)
    ]


def pairs_of(factors: Sequence[Factors], name: str = "ΔW") -> list[Pair]:
    """The same as what algebra works on.

    Raises
    ------
    CompatibilityError
        some are stored the other way round than the others.
    """
    from lora_lab.linalg.spectra import Pair

    if len({one.is_transposed for one in factors}) > 1:
        raise CompatibilityError(
            "One adapter stores ΔW as (out, in) and another as (in, out), expected one way.",
            hint="fan_in_fan_out differs between their configurations.",
        )
    return [Pair(name, one.lora_A, one.lora_B, one.scaling) for one in factors]


def in_one_order(pairs: Sequence[Pair], coefficients: Sequence[float]) -> tuple[list[Pair], list[float]]:
    """The same in an order that follows from their numbers alone: sums of floats depend on it in their last bits."""
    keyed = [
        (coefficient * pair.scaling, pair.lora_A.shape[0], _beginning(pair.lora_A), _beginning(pair.lora_B.T), place)
        for place, (pair, coefficient) in enumerate(zip(pairs, coefficients, strict=True))
    ]
    order = [key[-1] for key in sorted(keyed)]
    return [pairs[place] for place in order], [coefficients[place] for place in order]


def _beginning(factor: Tensor) -> list[float]:
    return [float(number) for number in factor[:1, :_COMPARED].reshape(-1).tolist()]
