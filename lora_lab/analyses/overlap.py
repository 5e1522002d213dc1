"""How far two adapters have learnt the same directions: φ(i,j) of every module, with what chance would give."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from lora_lab.analyses.alignment import aligned
from lora_lab.analyses.pairs import (
    adapter_findings,
    chosen_modules,
    common_places,
    in_step,
    listed,
    matrix_shape,
    module_finding,
    shape_finding,
)
from lora_lab.analyses.scope import adapters_of
from lora_lab.analyses.summaries import fault_finding
from lora_lab.analyses.watching import watched
from lora_lab.domain.parameters import Parameter, ParameterKind
from lora_lab.domain.report import Column, ColumnKind, Finding, Report, Scalars, Table
from lora_lab.errors import NumericalError, quoted
from lora_lab.extension.contracts import Need
from lora_lab.linalg.measures import rank_tolerance

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lora_lab.analyses.pairs import Place
    from lora_lab.domain.adapter import Delta
    from lora_lab.extension.contracts import AnalysisContext
    from lora_lab.linalg.spectra import Pair
    from lora_lab.linalg.subspaces import Overlap as Compared

_PAPER: Final = "arXiv 2106.09685, section 7.2"
_DISTANCES: Final = "Edelman, Arias & Smith, SIAM J. Matrix Anal. Appl. 20 (1998), section 4.3"
_GRID: Final = "i of A, j of B"

_COLUMNS: Final = (
    Column("module", "Module", ColumnKind.TEXT),
    Column("phi_full", "φ", formula="φ(rank A, rank B)", reference=_PAPER, low=0.0, high=1.0),
    Column("phi_full_random", "φ random", formula="max(rank A, rank B)/d", reference=_PAPER, low=0.0, high=1.0),
    Column("phi_first", "φ(1,1)", formula="(u_A·u_B)² of the first directions", reference=_PAPER, low=0.0, high=1.0),
    Column("cosine", "cos ΔW", formula="⟨ΔW_A,ΔW_B⟩/(‖ΔW_A‖‖ΔW_B‖), ⟨,⟩ = s·s'·tr((BᵀB')(A'Aᵀ))", low=-1.0, high=1.0),
    Column("rank_a", "rank A", ColumnKind.INTEGER, formula="numerical rank of A's side: #{σ > τ·σ₁}"),
    Column("rank_b", "rank B", ColumnKind.INTEGER, formula="numerical rank of B's side: #{σ > τ·σ₁}"),
    Column("dimension", "d", ColumnKind.INTEGER, formula="of the space compared: inputs for right and A, else outputs"),
    Column("shape", "Shape", ColumnKind.SHAPE, formula="of ΔW as the base stores the weight"),
    Column("grassmann_distance", "Grassmann", unit="rad", formula="‖θ‖₂", reference=_DISTANCES),
    Column("projection_distance", "Projection", formula="√(p − Σcos²θ)", reference=_DISTANCES),
    Column(
        "principal_angles_radians",
        "θ",
        ColumnKind.CURVE,
        unit="rad",
        formula="cos θ = σ(U_AᵀU_B)",
        reference="Björck & Golub, Math. Comp. 27 (1973)",
        index_title="k",
    ),
)
_GRIDS: Final = (
    Column(
        "phi",
        "φ(i,j)",
        ColumnKind.HEATMAP,
        formula="‖U_AⁱᵀU_Bʲ‖²_F/min(i,j)",
        reference=_PAPER,
        index_title=_GRID,
        low=0.0,
        high=1.0,
    ),
    Column(
        "phi_random",
        "φ(i,j) of random subspaces",
        ColumnKind.HEATMAP,
        formula="max(i,j)/d",
        reference=_PAPER,
        index_title=_GRID,
        low=0.0,
        high=1.0,
        is_wide=True,
    ),
)
_WHOLE: Final = (
    Column("side", "Side", ColumnKind.TEXT),
    Column("only_in_a", "Only in A", ColumnKind.LIST),
    Column("only_in_b", "Only in B", ColumnKind.LIST),
)
_TOTALS: Final = (
    Column("modules", "Modules compared", ColumnKind.INTEGER),
    Column("mean_phi", "Mean φ", formula="mean of φ(rank A, rank B) over the modules", low=0.0, high=1.0),
    Column("mean_phi_random", "Mean random φ", formula="mean of max(rank A, rank B)/d over them", low=0.0, high=1.0),
    Column("cosine", "cos ΔW", formula="ΣΔ⟨ΔW_A,ΔW_B⟩/√(Σ‖ΔW_A‖²·Σ‖ΔW_B‖²), modules compared", low=-1.0, high=1.0),
    Column("norm_a", "‖ΔW_A‖_F", formula="√Σ‖ΔW_A‖² over the modules compared"),
    Column("norm_b", "‖ΔW_B‖_F", formula="√Σ‖ΔW_B‖² over the modules compared"),
)


@dataclass
class _Notes:
    """What was compared, and modules about which something has to be said."""

    compared: list[Compared] = field(default_factory=list)
    left_out: list[Finding] = field(default_factory=list)
    zero: tuple[list[str], list[str]] = field(default_factory=lambda: ([], []))
    reduced: list[tuple[str, int, int]] = field(default_factory=list)  # module, directions left, directions possible


class Overlap:
    """φ of two adapters' subspaces, their angles and distances, and the cosine of their updates."""

    id = "overlap"
    title = "Overlap"
    summary = "How far two adapters learnt the same directions: φ(i,j) beside chance, angles, distances, cosine."
    reference = _PAPER
    parameters = (
        Parameter("side", "Side", ParameterKind.CHOICE, "right", choices=("right", "left", "A", "B")),
        Parameter("grid", "φ for all i and j", ParameterKind.BOOLEAN, default=True),
    )
    subjects = (2, 2)
    takes_models = False
    base = Need.NO
    is_on_processor = True

    def run(self, context: AnalysisContext) -> Report:
        """Compare every module that both adapters have.

        Raises
        ------
        AdapterError
            ΔW of one cannot be computed from its files, or no module matches.
        CompatibilityError
            the two have no module in common.
        """
        (a, b), renamed = aligned(adapters_of(context))
        side, has_grid = _choices(context)
        chosen = chosen_modules((a, b), context.modules)
        common = common_places((a, b), chosen)
        notes = _Notes()
        rows = list(watched(_rows(context, common, notes), len(common), context.observer))
        whole = {
            "side": side,
            "only_in_a": [module for module in chosen if module not in b.by_module],
            "only_in_b": [module for module in chosen if module not in a.by_module],
        }
        labels = (f"A {quoted(a.name)}", f"B {quoted(b.name)}")
        findings = [*renamed, *adapter_findings((a, b), labels), *_said(notes, labels, side)]
        return Report(
            command=self.id,
            title=f"Overlap of {a.name} and {b.name}",
            tables=(Table("modules", "Modules", (*_COLUMNS, *_GRIDS) if has_grid else _COLUMNS, tuple(rows)),),
            scalars=(
                Scalars("", "Overlap", _WHOLE, whole),
                Scalars("totals", "Totals", _TOTALS, _totals(rows, notes.compared)),
            ),
            findings=tuple(dict.fromkeys(findings)),
        )


def _choices(context: AnalysisContext) -> tuple[str, bool]:
    """The side, and whether every φ(i,j) is wanted."""
    return context.parameters.get("side", "right"), context.parameters.get("grid", True)


def _rows(context: AnalysisContext, common: Sequence[Place], notes: _Notes) -> Iterator[dict[str, Any]]:
    """Yield a row for each common module in order, while the next ones are being read and decomposed."""
    from lora_lab.linalg.subspaces import compare

    side, has_grid = _choices(context)

    def work(place: Place, pairs: Sequence[Pair]) -> Compared:
        tolerances = [_tolerance(delta, side) for delta in place.present]
        return compare(pairs[0], pairs[1], side=side, tolerances=(tolerances[0], tolerances[1]))

    results = in_step([place for place in common if len(place.shapes) == 1], context, work)
    for place in common:
        result = next(results) if len(place.shapes) == 1 else None
        if result is None:
            notes.left_out.append(shape_finding(place))
        elif isinstance(result, NumericalError):
            notes.left_out.append(fault_finding(place.module, result))
            result = None
        else:
            _note(notes, side, place, result)
        yield _row(place.present[0], result, has_grid=has_grid)


def _tolerance(delta: Delta, side: str) -> float:
    stored = {"A": [delta.lora_A.dtype], "B": [delta.lora_B.dtype]}.get(side)
    return rank_tolerance(stored or [delta.lora_A.dtype, delta.lora_B.dtype], delta.rank)


def _row(delta: Delta, result: Compared | None, *, has_grid: bool) -> dict[str, Any]:
    """What is known of one module; None where a subspace is empty, or nothing could be compared."""
    from lora_lab.linalg.subspaces import grassmann_distance, phi_grid, projection_distance

    row: dict[str, Any] = {column.id: None for column in ((*_COLUMNS, *_GRIDS) if has_grid else _COLUMNS)}
    row |= {"module": delta.module, "shape": list(delta.shape)}
    if result is None:
        return row
    rank_a, rank_b = result.cross.shape
    row |= {"dimension": result.dimension, "rank_a": rank_a, "rank_b": rank_b, "cosine": result.cosine}
    if rank_a == 0 or rank_b == 0:
        return row
    phi = phi_grid(result.cross)
    angles = result.angles.tolist()
    row |= {
        "phi_first": float(phi[0, 0]),
        "phi_full": float(phi[-1, -1]),
        "phi_full_random": max(rank_a, rank_b) / result.dimension,
        "grassmann_distance": grassmann_distance(angles),
        "projection_distance": projection_distance(angles),
        "principal_angles_radians": angles,
    }
    if has_grid:
        row |= {"phi": phi.tolist(), "phi_random": _random_rows(rank_a, rank_b, result.dimension)}
    return row


@lru_cache(maxsize=64)
def _random_rows(rank_a: int, rank_b: int, dimension: int) -> list[list[float]]:
    """max(i,j)/d; one list for all modules of these ranks and this dimension, which nobody changes."""
    from lora_lab.linalg.subspaces import random_grid

    rows: list[list[float]] = random_grid(rank_a, rank_b, dimension).tolist()
    return rows


def _note(notes: _Notes, side: str, place: Place, result: Compared) -> None:
    """Remember what has to be said about one module."""
    notes.compared.append(result)
    norms = (result.norm_a, result.norm_b)
    for delta, rank, norm, zero in zip(place.present, result.cross.shape, norms, notes.zero, strict=True):
        if norm == 0.0:
            zero.append(place.module)
        possible = _possible(delta, side)
        if 0 < rank < possible:
            notes.reduced.append((place.module, rank, possible))


def _possible(delta: Delta, side: str) -> int:
    """How many directions there can be."""
    outputs, inputs = matrix_shape(delta)
    return min(delta.rank, *{"A": (inputs,), "B": (outputs,)}.get(side, (inputs, outputs)))


def _said(notes: _Notes, labels: tuple[str, str], side: str) -> Iterator[Finding]:
    yield from notes.left_out
    for label, modules in zip(labels, notes.zero, strict=True):
        if modules:
            undefined = "" if side in ("A", "B") else ", its subspaces and φ are undefined"
            message = f"{label}: ΔW is zero in {{}}: its cosine is undefined{undefined}."
            yield module_finding("zero_delta", modules, message)
    if notes.reduced:
        module, rank, whole = min(notes.reduced, key=lambda one: one[1] / one[2])
        names = list(dict.fromkeys(name for name, _, _ in notes.reduced))
        yield Finding(
            "zero_directions",
            f"Numerically zero directions are left out of the subspaces of {listed(names)}: the fewest left are "
            f"{rank} of {whole}, in {quoted(module)}.",
            names[0] if len(names) == 1 else None,
        )


def _totals(rows: Sequence[dict[str, Any]], compared: Sequence[Compared]) -> dict[str, Any]:
    known = [row for row in rows if row["phi_full"] is not None]
    norm_a = math.hypot(*(one.norm_a for one in compared))
    norm_b = math.hypot(*(one.norm_b for one in compared))
    cosine = None
    if norm_a > 0.0 and norm_b > 0.0:
        cosine = max(-1.0, min(1.0, math.fsum(one.inner for one in compared) / norm_a / norm_b))
    return {
        "modules": len(compared),
        "mean_phi": math.fsum(row["phi_full"] for row in known) / len(known) if known else None,
        "mean_phi_random": math.fsum(row["phi_full_random"] for row in known) / len(known) if known else None,
        "cosine": cosine,
        "norm_a": norm_a,
        "norm_b": norm_b,
    }
