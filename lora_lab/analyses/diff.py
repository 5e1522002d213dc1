"""What two adapters differ in: weights, module by module, settings, key by key, and everything else they save."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from lora_lab.analyses.alignment import aligned
from lora_lab.analyses.pairs import (
    Place,
    adapter_findings,
    chosen_modules,
    in_step,
    module_finding,
    places,
    shape_finding,
)
from lora_lab.analyses.saved_differences import SAVED, saved_differences
from lora_lab.analyses.scope import adapters_of
from lora_lab.analyses.settings import SETTINGS, setting_differences
from lora_lab.analyses.summaries import fault_finding
from lora_lab.analyses.watching import watched
from lora_lab.domain.report import Column, ColumnKind, Finding, Report, Scalars, Table
from lora_lab.errors import NumericalError, quoted
from lora_lab.extension.contracts import Need
from lora_lab.linalg.measures import rank_tolerance

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lora_lab.domain.parameters import Parameter
    from lora_lab.extension.contracts import AnalysisContext
    from lora_lab.linalg.spectra import Pair

_RELATIVE: Final = "‖ΔW_A − ΔW_B‖/max(‖ΔW_A‖, ‖ΔW_B‖), from 0 to 2"
_COLUMNS: Final = (
    Column("module", "Module", ColumnKind.TEXT),
    Column("in", "In", ColumnKind.TEXT, formula="a, b or both"),
    Column("relative_difference", "Relative", formula=_RELATIVE, low=0.0, high=2.0),
    Column("cosine", "cos ΔW", formula="⟨ΔW_A,ΔW_B⟩/(‖ΔW_A‖‖ΔW_B‖)", low=-1.0, high=1.0),
    Column(
        "phi",
        "φ",
        formula="‖V_AᵀV_B‖²_F/min(ranks), V the right-singular vectors of ΔW",
        reference="arXiv 2106.09685, section 7.2",
        low=0.0,
        high=1.0,
    ),
    Column("phi_random", "φ random", formula="max(ranks)/d: what random subspaces have on average", low=0.0, high=1.0),
    Column(
        "difference_norm", "‖ΔW_A − ΔW_B‖_F", formula="norm of the core of [s·B, −s'·B']·[A; A']; an absent ΔW is 0"
    ),
    Column("rank_a", "r A", ColumnKind.INTEGER, formula="rows of lora_A, columns of lora_B"),
    Column("rank_b", "r B", ColumnKind.INTEGER, formula="rows of lora_A, columns of lora_B"),
    Column("scaling_a", "Scaling A", formula="alpha/r, or alpha/√r for rsLoRA"),
    Column("scaling_b", "Scaling B", formula="alpha/r, or alpha/√r for rsLoRA"),
    Column("shape_a", "Shape A", ColumnKind.SHAPE, formula="of ΔW as the base stores the weight"),
    Column("shape_b", "Shape B", ColumnKind.SHAPE, formula="of ΔW as the base stores the weight"),
)
_WHOLE: Final = (
    Column(
        "identical",
        "Identical",
        ColumnKind.VALUE,
        formula="equal modules, scalings, factors, saved tensors and settings; numbers count, not dtypes",
    ),
)
_TOTALS: Final = (
    Column("modules", "Modules", ColumnKind.INTEGER),
    Column("differing", "Modules that differ", ColumnKind.INTEGER, formula="#{a factor or the scaling differs}"),
    Column("difference_norm", "‖ΔW_A − ΔW_B‖_F", formula="√Σ‖ΔW_A − ΔW_B‖² over the modules"),
    Column("relative_difference", "Relative", formula=_RELATIVE + ", all modules together", low=0.0, high=2.0),
)


class _Compared(NamedTuple):
    """The numbers of one module."""

    norm_a: float
    norm_b: float
    difference: float
    is_equal: bool
    cosine: float | None = None
    phi: float | None = None
    chance: float | None = None  # φ of random subspaces


@dataclass
class _Notes:
    """What was compared, and modules about which something has to be said."""

    compared: list[_Compared] = field(default_factory=list)
    left_out: list[Finding] = field(default_factory=list)


class Diff:
    """Everything in which two adapters differ."""

    id = "diff"
    title = "Differences"
    summary = "What two adapters differ in: modules, weights, saved tensors and settings."
    reference = ""
    parameters: tuple[Parameter, ...] = ()
    subjects = (2, 2)
    takes_models = False
    base = Need.NO
    is_on_processor = True

    def run(self, context: AnalysisContext) -> Report:
        """Compare every module that one of them has, and everything else they say.

        Notes
        -----
        ``identical``, which is the verdict too, means that nothing differs in what they do or say: the same modules
        with equal numbers in both factors and the same scaling, equal saved tensors (modules, biases, magnitudes), and
        settings that differ in nothing but the order of a set. A dtype alone is no difference: numbers are compared.
        Two factorisations of one ΔW are not identical, though their relative difference is 0 or near it.

        Raises
        ------
        AdapterError
            ΔW of one cannot be computed from its files, or no module matches.
        """
        (a, b), renamed = aligned(adapters_of(context))
        chosen = chosen_modules((a, b), context.modules)
        notes = _Notes()
        rows = list(watched(_rows(context, places((a, b), chosen), notes), len(chosen), context.observer))
        labels = (f"A {quoted(a.name)}", f"B {quoted(b.name)}")
        saved, unread = saved_differences(a, b, context)
        settings = setting_differences(a.configuration, b.configuration)
        differing = len(rows) - sum(one.is_equal for one in notes.compared)
        is_identical = not differing and not settings and not saved and not unread
        findings = [*renamed, *adapter_findings((a, b), labels), *notes.left_out, *_zeros(rows), *unread]
        return Report(
            command=self.id,
            title=f"Differences of {a.name} and {b.name}",
            tables=(
                Table("modules", "Modules", _COLUMNS, tuple(rows)),
                Table("saved", "Saved tensors that differ", SAVED, saved, key="tensor"),
                Table("config", "Settings that differ", SETTINGS, settings, key="key"),
            ),
            scalars=(
                Scalars("", "Whole", _WHOLE, {"identical": is_identical}),
                Scalars("totals", "Totals", _TOTALS, _totals(len(rows), differing, notes.compared)),
            ),
            findings=tuple(dict.fromkeys(findings)),
            verdict=is_identical,
        )


def _rows(context: AnalysisContext, wanted: Sequence[Place], notes: _Notes) -> Iterator[dict[str, Any]]:
    results = in_step([place for place in wanted if len(place.shapes) == 1], context, _compare)
    for place in wanted:
        result = next(results) if len(place.shapes) == 1 else None
        if result is None:
            notes.left_out.append(shape_finding(place))
        elif isinstance(result, NumericalError):
            notes.left_out.append(fault_finding(place.module, result))
            result = None
        else:
            notes.compared.append(result)
        yield _row(place, result)


def _zeros(rows: Sequence[dict[str, Any]]) -> Iterator[Finding]:
    """Why a module that both have has no cosine."""
    compared = (row for row in rows if row["in"] == "both" and row["difference_norm"] is not None)
    zero = [row["module"] for row in compared if row["cosine"] is None]
    if zero:
        yield module_finding("zero_delta", zero, "ΔW of A or B is zero in {}: cosine and φ are undefined there.")


def _compare(place: Place, pairs: Sequence[Pair]) -> _Compared:
    """Work on one module, which one or both of the adapters have."""
    from lora_lab.linalg.comparing import difference_norm, equal_numbers
    from lora_lab.linalg.spectra import factored_singular_values
    from lora_lab.linalg.subspaces import compare, phi_grid

    if len(pairs) == 1:
        (pair,) = pairs
        values = factored_singular_values(pair.lora_A, pair.lora_B, pair.scaling, name=pair.name)
        norm = math.hypot(*values.tolist())
        norms = (norm, 0.0) if place.deltas[1] is None else (0.0, norm)
        return _Compared(*norms, norm, is_equal=False)
    first, second = pairs
    stored = [rank_tolerance([delta.lora_A.dtype, delta.lora_B.dtype], delta.rank) for delta in place.present]
    overlap = compare(first, second, tolerances=(stored[0], stored[1]))
    is_equal = (
        first.scaling == second.scaling
        and equal_numbers(first.lora_A, second.lora_A)
        and equal_numbers(first.lora_B, second.lora_B)
    )
    compared = _Compared(overlap.norm_a, overlap.norm_b, difference_norm(first, second), is_equal, overlap.cosine)
    if 0 in overlap.cross.shape:
        return compared
    phi = float(phi_grid(overlap.cross)[-1, -1])
    return compared._replace(phi=phi, chance=max(overlap.cross.shape) / overlap.dimension)


def _row(place: Place, result: _Compared | None) -> dict[str, Any]:
    from lora_lab.linalg.comparing import relative_difference

    a, b = place.deltas
    return {
        "module": place.module,
        "in": "both" if a and b else "a" if a else "b",
        "relative_difference": relative_difference(result.difference, result.norm_a, result.norm_b) if result else None,
        "cosine": result.cosine if result else None,
        "phi": result.phi if result else None,
        "phi_random": result.chance if result else None,
        "difference_norm": result.difference if result else None,
        "rank_a": a.rank if a else None,
        "rank_b": b.rank if b else None,
        "scaling_a": a.scaling if a else None,
        "scaling_b": b.scaling if b else None,
        "shape_a": list(a.shape) if a else None,
        "shape_b": list(b.shape) if b else None,
    }


def _totals(modules: int, differing: int, compared: Sequence[_Compared]) -> dict[str, Any]:
    from lora_lab.linalg.comparing import relative_difference

    norm_a, norm_b, norm = (
        math.hypot(*values)
        for values in (
            [one.norm_a for one in compared],
            [one.norm_b for one in compared],
            [one.difference for one in compared],
        )
    )
    return {
        "modules": modules,
        "differing": differing,
        "difference_norm": norm,
        "relative_difference": relative_difference(norm, norm_a, norm_b),
    }
