"""The singular values of every module's ΔW, and what follows from them."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from lora_lab.analyses.columns import IDENTITY, LAYERS, MEASURES, SINGULAR_VALUES, TOTALS
from lora_lab.analyses.scope import adapter_of, outside_findings, selected
from lora_lab.analyses.watching import watched
from lora_lab.domain.modules import layer_of
from lora_lab.domain.progress import stop_if_cancelled
from lora_lab.domain.report import Finding, Report, Scalars, Table
from lora_lab.errors import quoted
from lora_lab.extension.contracts import Need
from lora_lab.linalg.device import has_float64
from lora_lab.linalg.measures import ZERO_REASON, measure, rank_tolerance

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lora_lab.domain.adapter import Delta
    from lora_lab.domain.parameters import Parameter
    from lora_lab.extension.contracts import AnalysisContext
    from lora_lab.linalg.spectra import Pair

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

    def run(self, context: AnalysisContext) -> Report:
        """Compute the spectra, telling the observer of each row as it comes.

        Raises
        ------
        AdapterError
            ΔW cannot be computed from the adapter's files, or no module matches.
        NumericalError
            a factor holds NaN or infinity; the module is named.
        """
        adapter = adapter_of(context)
        deltas = selected(adapter, context.modules)
        rows = list(watched(_rows(deltas, context), len(deltas), context.observer))
        findings = [
            *adapter.findings,
            *outside_findings(adapter),
            *_device_findings(context.device),
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


def _rows(deltas: Sequence[Delta], context: AnalysisContext) -> Iterator[dict[str, Any]]:
    """Yield one row for each delta, in order, while the next ones are being read and decomposed."""
    from lora_lab.linalg.spectra import Pair, stream_singular_values
    from lora_lab.linalg.threads import advanced_alone

    def pairs() -> Iterator[Pair]:
        for delta, factors in advanced_alone(context.reader.factors_of(deltas)):
            stop_if_cancelled(context.observer)
            yield Pair(delta.module, factors.lora_A, factors.lora_B, factors.scaling)

    spectra = stream_singular_values(pairs(), device=context.device)
    for delta, (_, singular_values) in zip(deltas, spectra, strict=True):
        yield _row(delta, singular_values.tolist())


def _row(delta: Delta, singular_values: list[float]) -> dict[str, Any]:
    tolerance = rank_tolerance([delta.lora_A.dtype, delta.lora_B.dtype], delta.rank)
    return {
        "module": delta.module,
        "shape": list(delta.shape),
        "rank": delta.rank,
        "scaling": delta.scaling,
        "singular_values": singular_values,
        **asdict(measure(singular_values, tolerance=tolerance)),
    }


def _totals(deltas: Sequence[Delta], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    largest = max(rows, key=lambda row: row["frobenius_norm"], default=None)
    ranks = [row["effective_rank"] for row in rows if row["effective_rank"] is not None]
    return {
        "modules": len(rows),
        "parameters": sum(delta.parameters for delta in deltas),
        "frobenius_norm": math.hypot(*(row["frobenius_norm"] for row in rows)),
        "largest_module": largest["module"] if largest else None,
        "largest_norm": largest["frobenius_norm"] if largest else None,
        "mean_effective_rank": math.fsum(ranks) / len(ranks) if ranks else None,
        "zero_modules": len(rows) - len(ranks),
    }


def _layers(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """One row for each layer in natural order, and one for the modules that belong to none."""
    norms: defaultdict[int | str, list[float]] = defaultdict(list)
    for row in rows:
        number = layer_of(row["module"])
        norms[_NO_LAYER if number is None else number].append(row["frobenius_norm"])
    for layer in sorted(norms, key=lambda layer: (layer == _NO_LAYER, layer)):
        yield {"layer": layer, "modules": len(norms[layer]), "frobenius_norm": math.hypot(*norms[layer])}


def _zero_findings(rows: Sequence[dict[str, Any]]) -> Iterator[Finding]:
    for row in rows:
        if row["effective_rank"] is None:
            yield Finding("zero_delta", f"In {quoted(row['module'])} {ZERO_REASON}.", row["module"])


def _device_findings(device: str) -> Iterator[Finding]:
    if not has_float64(device):
        yield Finding("no_float64", f"The device {device} has no float64: the spectra were computed on the processor.")
