"""What several adapters would do to each other if they were added up."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from lora_lab.analyses.alignment import aligned
from lora_lab.analyses.pairs import (
    Place,
    adapter_findings,
    chosen_modules,
    common_places,
    in_step,
    module_finding,
    shape_finding,
)
from lora_lab.analyses.scope import adapters_of
from lora_lab.analyses.summaries import fault_finding
from lora_lab.analyses.watching import watched
from lora_lab.domain.parameters import Parameter, ParameterKind
from lora_lab.domain.report import Column, ColumnKind, Finding, Report, Scalars, Table
from lora_lab.errors import LoraLabError, NumericalError, quoted
from lora_lab.extension.contracts import Need
from lora_lab.linalg.measures import rank_tolerance

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lora_lab.domain.adapter import Adapter
    from lora_lab.extension.contracts import AnalysisContext
    from lora_lab.linalg.spectra import Pair

_MOST_ADAPTERS: Final = 64
_PAPER: Final = "arXiv 2106.09685, section 7.2"
_SIGNS: Final = "Yadav et al., arXiv 2306.01708 (TIES), section 3"
_ENERGY: Final = "‖Σ wΔW‖²/Σ‖wΔW‖²: 1 orthogonal, n all alike, 0 cancelled"
_CONFLICT: Final = "share of the entries that at least two have a sign for, where the signs of wΔW are not all the same"
_CHANCE: Final = "1 − 2^(1−n) for n adapters: what independent signs have on average"
_SHARED: Final = "mean over pairs of φ = ‖V_AᵀV_B‖²_F/min(ranks), V the right-singular vectors of ΔW"
_RANDOM: Final = "mean over pairs of max(ranks)/d: what φ of random subspaces is on average"
_COSINE: Final = "⟨wΔW, w'ΔW'⟩/(‖wΔW‖‖w'ΔW'‖)"

_MODULES: Final = (
    Column("module", "Module", ColumnKind.TEXT),
    Column("adapters", "Adapters", ColumnKind.INTEGER, formula="how many have the module"),
    Column("energy_ratio", "Energy ratio", formula=_ENERGY),
    Column("sign_conflict", "Sign conflict", formula=_CONFLICT, reference=_SIGNS, low=0.0, high=1.0),
    Column("sign_conflict_random", "Conflict, random", formula=_CHANCE, low=0.0, high=1.0),
    Column("shared_subspace", "Shared", formula=_SHARED, reference=_PAPER, low=0.0, high=1.0),
    Column("shared_subspace_random", "Shared, random", formula=_RANDOM, reference=_PAPER, low=0.0, high=1.0),
    Column("mean_cosine", "Mean cos", formula=f"mean over pairs of {_COSINE}", low=-1.0, high=1.0),
)
_PAIRS: Final = (
    Column("a", "A", ColumnKind.TEXT),
    Column("b", "B", ColumnKind.TEXT),
    Column("cosine", "cos", formula=f"{_COSINE}, the modules of both together", low=-1.0, high=1.0),
    Column(
        "sign_conflict",
        "Sign conflict",
        formula="#{differing signs}/#{both non-zero}",
        reference=_SIGNS,
        low=0.0,
        high=1.0,
    ),
    Column(
        "shared_subspace", "Shared", formula="mean of φ over the modules of both", reference=_PAPER, low=0.0, high=1.0
    ),
    Column(
        "shared_subspace_random", "Shared, random", formula="mean of max(ranks)/d", reference=_PAPER, low=0.0, high=1.0
    ),
    Column("modules", "Modules", ColumnKind.INTEGER, formula="how many both have"),
)
_TOTALS: Final = (
    Column("modules", "Modules", ColumnKind.INTEGER, formula="in two adapters or more"),
    Column(
        "alone", "Modules alone", ColumnKind.INTEGER, formula="in one adapter, where nothing interferes; in no number"
    ),
    Column("energy_ratio", "Energy ratio", formula=f"{_ENERGY}, modules together"),
    Column("sign_conflict", "Sign conflict", formula=_CONFLICT, reference=_SIGNS, low=0.0, high=1.0),
    Column("sign_conflict_random", "Conflict, random", formula=_CHANCE, low=0.0, high=1.0),
    Column(
        "cosines",
        "cos",
        ColumnKind.HEATMAP,
        formula=f"{_COSINE}, the modules of both together",
        index_title="adapter, adapter",
        low=-1.0,
        high=1.0,
    ),
    Column("adapters", "Adapters", ColumnKind.LIST),
)


class _Met(NamedTuple):
    """The numbers of one module; matrices are over the adapters that have it."""

    holders: tuple[int, ...]  # places of the adapters among all
    gram: list[list[float]]  # ⟨wΔW, w'ΔW'⟩
    phi: dict[tuple[int, int], tuple[float, float]]  # of two holders: φ and its random baseline
    pair_signs: dict[tuple[int, int], tuple[float, float]]  # conflicts and shared entries
    signs: tuple[int, int] | None  # of all holders; None when no signs were looked at


@dataclass
class _Notes:
    """What was compared, and modules about which something has to be said."""

    met: list[_Met] = field(default_factory=list)
    left_out: list[Finding] = field(default_factory=list)
    zero: list[str] = field(default_factory=list)


class Interference:
    """Whether adapters add up, cancel, or work in directions of their own; before combining them."""

    id = "interference"
    title = "Interference"
    summary = (
        "What several adapters do to each other when added: cosines, energy ratio, sign conflicts, shared subspace."
    )
    reference = _SIGNS
    parameters = (
        Parameter(
            "strength",
            "Strength of each adapter, in order; 1 each when not given",
            ParameterKind.NUMBER,
            None,
            is_repeatable=True,
        ),
        Parameter(
            "sign_rows",
            "Rows of each ΔW whose signs are compared, drawn by the seed; all when not given, 0 for none",
            ParameterKind.INTEGER,
            None,
            minimum=0,
        ),
    )
    subjects = (2, _MOST_ADAPTERS)
    takes_models = False
    base = Need.NO
    is_on_processor = True

    def run(self, context: AnalysisContext) -> Report:
        """Compare every module that at least two of the adapters have.

        Everything is of the weighted updates wᵢΔWᵢ: a negative strength turns cosines and signs around, one of 0 leaves
        an update without direction. The subspaces do not depend on the strengths.

        Raises
        ------
        AdapterError
            ΔW of one cannot be computed from its files, or no module matches.
        CompatibilityError
            no module is in two of them.
        LoraLabError
            the number of strengths is not that of the adapters.

        Notes
        -----
        Cosines, energies and subspaces come from the factors. Signs are of entries: each ΔW is formed, some rows at a
        time, O(out·in·r) for each adapter and module, minutes for a 7B model where the rest takes seconds.
        """
        adapters, renamed = aligned(adapters_of(context))
        strengths = _strengths(context.parameters.get("strength", ()), len(adapters))
        chosen = chosen_modules(adapters, context.modules)
        common = common_places(adapters, chosen)
        notes = _Notes()
        rows = list(watched(_rows(context, common, strengths, notes), len(common), context.observer))
        names = _names(adapters)
        totals = {"modules": len(notes.met), "alone": len(chosen) - len(common), **_totals(notes.met, names)}
        said = adapter_findings(adapters, [quoted(name) for name in names])
        findings = [*renamed, *said, *notes.left_out, *_zeros(notes.zero)]
        return Report(
            command=self.id,
            title=f"Interference of {len(adapters)} adapters",
            tables=(
                Table("modules", "Modules", _MODULES, tuple(rows)),
                Table("pairs", "Pairs", _PAIRS, tuple(_pairs(notes.met, names)), key="a"),
            ),
            scalars=(Scalars("totals", "Totals", _TOTALS, totals),),
            findings=tuple(dict.fromkeys(findings)),
        )


def _strengths(given: Sequence[float], count: int) -> tuple[float, ...]:
    if not given:
        return (1.0,) * count
    if len(given) != count:
        raise LoraLabError(
            f"There are {len(given)} strengths for {count} adapters, expected one for each.",
            hint="Repeat --strength in the order of the adapters, or leave it out for 1 each.",
        )
    return tuple(given)


def _names(adapters: Sequence[Adapter]) -> list[str]:
    """Names that tell the adapters apart: their locators where two have one name."""
    names = [adapter.name for adapter in adapters]
    if len(set(names)) < len(names):
        names = [adapter.locator for adapter in adapters]
    if len(set(names)) < len(names):
        names = [f"{place} {name}" for place, name in enumerate(names, start=1)]
    return names


def _rows(
    context: AnalysisContext, common: Sequence[Place], strengths: Sequence[float], notes: _Notes
) -> Iterator[dict[str, Any]]:
    rows, seed = context.parameters.get("sign_rows"), context.seed

    def work(place: Place, pairs: Sequence[Pair]) -> _Met:
        return _meet(place, pairs, strengths, rows, seed)

    results = in_step([place for place in common if len(place.shapes) == 1], context, work)
    for place in common:
        result = next(results) if len(place.shapes) == 1 else None
        if result is None:
            notes.left_out.append(shape_finding(place))
        elif isinstance(result, NumericalError):
            notes.left_out.append(fault_finding(place.module, result))
            result = None
        else:
            notes.met.append(result)
            if any(result.gram[index][index] == 0.0 for index in range(len(result.holders))):
                notes.zero.append(place.module)
        yield _row(place, result)


def _meet(place: Place, pairs: Sequence[Pair], strengths: Sequence[float], rows: int | None, seed: int) -> _Met:
    """Compare all that have one module, two at a time and together."""
    from lora_lab.linalg.comparing import sign_counts
    from lora_lab.linalg.spectra import delta_inner
    from lora_lab.linalg.subspaces import cross_gram, directions, phi_grid

    holders = tuple(index for index, delta in enumerate(place.deltas) if delta is not None)
    weights = [strengths[index] for index in holders]
    count = len(pairs)
    spanned = [
        directions(pair, "right", rank_tolerance([delta.lora_A.dtype, delta.lora_B.dtype], delta.rank))
        for pair, delta in zip(pairs, place.present, strict=True)
    ]
    gram = [[0.0] * count for _ in range(count)]
    phi, pair_signs = {}, {}
    for index, (weight, one) in enumerate(zip(weights, spanned, strict=True)):
        gram[index][index] = (weight * one.norm) ** 2
    for i, j in combinations(range(count), 2):
        gram[i][j] = gram[j][i] = weights[i] * weights[j] * delta_inner(pairs[i], pairs[j])
        cross = cross_gram(spanned[i], spanned[j])
        if 0 not in cross.shape:
            phi[holders[i], holders[j]] = (float(phi_grid(cross)[-1, -1]), max(cross.shape) / spanned[i].dimension)
    if any(not math.isfinite(value) for line in gram for value in line):
        raise NumericalError(f"The inner products of {quoted(place.module)} exceed the range of float64.")
    signs = None
    if rows != 0:
        counts = sign_counts(pairs, weights, rows=rows, seed=seed)
        signs = (counts.conflicts, counts.shared)
        for i, j in combinations(range(count), 2):
            pair_signs[holders[i], holders[j]] = (float(counts.pair_conflicts[i, j]), float(counts.pair_shared[i, j]))
    return _Met(holders, gram, phi, pair_signs, signs)


def _row(place: Place, met: _Met | None) -> dict[str, Any]:
    row: dict[str, Any] = {column.id: None for column in _MODULES}
    row |= {"module": place.module, "adapters": len(place.present)}
    if met is None:
        return row
    cosines = [
        _cosine(met.gram[i][j], met.gram[i][i], met.gram[j][j]) for i, j in combinations(range(len(met.holders)), 2)
    ]
    conflicts, shared = met.signs or (0, 0)
    return row | {
        "energy_ratio": _energy_ratio([met]),
        "sign_conflict": conflicts / shared if shared else None,
        "sign_conflict_random": _chance(len(met.holders)) if shared else None,
        "shared_subspace": _mean([phi for phi, _ in met.phi.values()]),
        "shared_subspace_random": _mean([chance for _, chance in met.phi.values()]),
        "mean_cosine": _mean([cosine for cosine in cosines if cosine is not None]),
    }


def _chance(adapters: int) -> float:
    """Probability that fair and independent signs are not all the same: only 2 of the 2ⁿ are."""
    return float(1 - 2.0 ** (1 - adapters))


def _pairs(met: Sequence[_Met], names: Sequence[str]) -> Iterator[dict[str, Any]]:
    cosines = _cosines(met, len(names))
    for i, j in combinations(range(len(names)), 2):
        both = [one for one in met if i in one.holders and j in one.holders]
        found = [one.phi[i, j] for one in both if (i, j) in one.phi]
        signs = [one.pair_signs[i, j] for one in both if (i, j) in one.pair_signs]
        conflicts, shared = (math.fsum(values) for values in zip(*signs, strict=True)) if signs else (0.0, 0.0)
        yield {
            "a": names[i],
            "b": names[j],
            "cosine": cosines[i][j],
            "sign_conflict": conflicts / shared if shared else None,
            "shared_subspace": _mean([phi for phi, _ in found]),
            "shared_subspace_random": _mean([chance for _, chance in found]),
            "modules": len(both),
        }


def _totals(met: Sequence[_Met], names: Sequence[str]) -> dict[str, Any]:
    counted = [one.signs for one in met if one.signs is not None]
    shared = sum(entries for _, entries in counted)
    chance = math.fsum(_chance(len(one.holders)) * one.signs[1] for one in met if one.signs is not None)
    return {
        "energy_ratio": _energy_ratio(met),
        "sign_conflict": sum(conflicts for conflicts, _ in counted) / shared if shared else None,
        "sign_conflict_random": chance / shared if shared else None,
        "cosines": _cosines(met, len(names)),
        "adapters": list(names),
    }


def _cosines(met: Sequence[_Met], count: int) -> list[list[float | None]]:
    """Of every two adapters, over the modules that both have."""
    cosines: list[list[float | None]] = [[None] * count for _ in range(count)]
    for i in range(count):
        for j in range(i, count):
            both = [(one.gram, one.holders.index(i), one.holders.index(j)) for one in met if {i, j} <= {*one.holders}]
            inner, square_i, square_j = (
                math.fsum(gram[row][column] for gram, row, column in places)
                for places in (
                    both,
                    [(gram, row, row) for gram, row, _ in both],
                    [(gram, column, column) for gram, _, column in both],
                )
            )
            cosines[i][j] = cosines[j][i] = _cosine(inner, square_i, square_j)
    return cosines


def _cosine(inner: float, square_a: float, square_b: float) -> float | None:
    if square_a == 0.0 or square_b == 0.0:
        return None
    return max(-1.0, min(1.0, inner / math.sqrt(square_a) / math.sqrt(square_b)))


def _energy_ratio(met: Sequence[_Met]) -> float | None:
    """‖Σ wΔW‖²/Σ‖wΔW‖²: the sum of all of the Gram matrix over its trace."""
    alone = math.fsum(one.gram[index][index] for one in met for index in range(len(one.holders)))
    together = math.fsum(value for one in met for line in one.gram for value in line)
    return max(0.0, together / alone) if alone > 0.0 else None


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _zeros(modules: Sequence[str]) -> Iterator[Finding]:
    if modules:
        yield module_finding(
            "zero_delta", modules, "In {} an update is zero, or has strength 0: it has no direction and is in no mean."
        )
