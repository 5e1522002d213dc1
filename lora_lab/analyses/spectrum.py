"""The singular values of every module's ΔW, and what follows from them."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from lora_lab.analyses.columns import IDENTITY, LAYERS, MEASURES, SINGULAR_VALUES, TOTALS
from lora_lab.analyses.each_spectrum import each_spectrum
from lora_lab.analyses.scope import adapter_of, outside_findings, selected
from lora_lab.analyses.summaries import fault_finding
from lora_lab.analyses.watching import watched
from lora_lab.domain.adapter import Adapter
from lora_lab.domain.modules import layer_of, select_modules
from lora_lab.domain.report import Finding, Report, Scalars, Table
from lora_lab.errors import quoted
from lora_lab.extension.contracts import Need
from lora_lab.linalg.device import has_float64
from lora_lab.linalg.measures import ZERO_REASON, measure, rank_tolerance

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lora_lab.domain.adapter import Delta
    from lora_lab.domain.base import Base
    from lora_lab.domain.parameters import Parameter
    from lora_lab.errors import NumericalError
    from lora_lab.extension.contracts import AnalysisContext

_TABLE: Final = "modules"
_NO_LAYER: Final = "–"


class Spectrum:
    """Singular values of ΔW = scaling·B·A, module by module, from the factors alone."""

    id = "spectrum"
    title = "Spectrum"
    summary = "Singular values of every module's ΔW, its norms and its ranks."
    reference = "arXiv 2106.09685, section 7"
    parameters: tuple[Parameter, ...] = ()
    subjects = (1, 1)
    takes_models = False
    base = Need.NO

    def operations(self, subjects: Sequence[Adapter | Base], modules: Sequence[str]) -> float:
        """QR of both factors of every module, 4·r² for each of their rows (Golub & Van Loan, section 5.2)."""
        chosen = [
            delta for adapter in subjects if isinstance(adapter, Adapter) for delta in _matching(adapter, modules)
        ]
        return float(sum(4 * delta.rank * delta.parameters for delta in chosen))

    def run(self, context: AnalysisContext) -> Report:
        """Compute the spectra, telling the observer of each row as it comes.

        Raises
        ------
        AdapterError
            ΔW cannot be computed from the adapter's files, or no module matches.
        NumericalError
            no module can be computed, because each holds NaN or infinity; the first is named.

        Notes
        -----
        A module whose factors are not finite is a row without numbers and a finding; the others are computed.
        """
        adapter = adapter_of(context)
        deltas = selected(adapter, context.modules)
        failures: dict[str, NumericalError] = {}
        rows = list(watched(_rows(deltas, context, failures), len(deltas), context.observer))
        if failures and len(failures) == len(rows):
            raise next(iter(failures.values()))
        findings = [
            *adapter.findings,
            *outside_findings(adapter),
            *_device_findings(context.device),
            *(fault_finding(module, error) for module, error in failures.items()),
            *_zero_findings(rows),
        ]
        return Report(
            command=self.id,
            title=f"Spectrum of {adapter.name}",
            tables=(
                Table(_TABLE, "Modules", (*IDENTITY, SINGULAR_VALUES, *MEASURES), tuple(rows)),
                Table("layers", "Layers", LAYERS, tuple(_layers(rows)), key="layer"),
            ),
            scalars=(Scalars("totals", "Totals", TOTALS, _totals(deltas, rows)),),
            findings=tuple(dict.fromkeys(findings)),
        )


def _rows(
    deltas: Sequence[Delta], context: AnalysisContext, failures: dict[str, NumericalError]
) -> Iterator[dict[str, Any]]:
    """Yield one row for each delta, in order; undefined where `failures` takes what is wrong with it."""
    for delta, singular_values in each_spectrum(deltas, context, failures):
        if singular_values is None:
            undefined = dict.fromkeys(column.id for column in (SINGULAR_VALUES, *MEASURES))
            yield _identity(delta) | undefined
        else:
            yield _row(delta, singular_values)


def _identity(delta: Delta) -> dict[str, Any]:
    return {"module": delta.module, "shape": list(delta.shape), "rank": delta.rank, "scaling": delta.scaling}


def _row(delta: Delta, singular_values: list[float]) -> dict[str, Any]:
    tolerance = rank_tolerance([delta.lora_A.dtype, delta.lora_B.dtype], delta.rank)
    measures = asdict(measure(singular_values, tolerance=tolerance))
    return {**_identity(delta), "singular_values": singular_values, **measures}


def _totals(deltas: Sequence[Delta], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    known = [row for row in rows if row["singular_values"] is not None]
    largest = max(known, key=lambda row: row["frobenius_norm"], default=None)
    ranks = [row["effective_rank"] for row in known if row["effective_rank"] is not None]
    return {
        "modules": len(rows),
        "parameters": sum(delta.parameters for delta in deltas),
        "frobenius_norm": math.hypot(*(row["frobenius_norm"] for row in known)),
        "largest_module": largest["module"] if largest else None,
        "largest_norm": largest["frobenius_norm"] if largest else None,
        "mean_effective_rank": math.fsum(ranks) / len(ranks) if ranks else None,
        "zero_modules": len(known) - len(ranks),
        "not_finite_modules": len(rows) - len(known),
    }


def _layers(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """One row for each layer in natural order, and one for the modules that belong to none."""
    norms: defaultdict[int | str, list[float | None]] = defaultdict(list)
    for row in rows:
        number = layer_of(row["module"])
        norms[_NO_LAYER if number is None else number].append(row["frobenius_norm"])
    for layer in sorted(norms, key=lambda layer: (layer == _NO_LAYER, layer)):
        known = [norm for norm in norms[layer] if norm is not None]
        norm = math.hypot(*known) if known else None
        yield {"layer": layer, "modules": len(norms[layer]), "frobenius_norm": norm}


def _zero_findings(rows: Sequence[dict[str, Any]]) -> Iterator[Finding]:
    for row in rows:
        if row["singular_values"] is not None and row["effective_rank"] is None:
            yield Finding("zero_delta", f"In {quoted(row['module'])} {ZERO_REASON}.", row["module"])


def _device_findings(device: str) -> Iterator[Finding]:
    if not has_float64(device):
        yield Finding("no_float64", f"The device {device} has no float64: the spectra were computed on the processor.")


def _matching(adapter: Adapter, modules: Sequence[str]) -> Iterator[Delta]:
    chosen = set(select_modules(adapter.modules, modules))
    return (delta for delta in adapter.deltas if delta.module in chosen)
