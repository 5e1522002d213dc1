"""What an adapter's modules suffer from, and the rank that would have done.

Codes of the column ``findings``:

* ``dead``: ΔW = 0; the module changes nothing.
* ``not_finite``: a factor holds NaN or infinity; the module has no numbers, the others do.
* ``near_rank_one``: one of several directions holds almost all of the energy, σ₁²/Σσ² ≥ ``rank_one_share``, which is a
  stable rank of at most 1/``rank_one_share`` (Rudelson and Vershynin, J. ACM 54 (2007)).
* ``over_parametrised``: the best matrix of half the rank (``over_share``) is within ``error`` of ΔW. The paper of LoRA
  finds a very low rank enough (arXiv 2106.09685, section 7.2); AdaLoRA (arXiv 2303.10512) that layers differ in it.
* ``unused_directions``: the numerical rank is below r: directions that are zero, or combinations of others.
* ``outlier_norm``: ‖ΔW‖_F is far from that of the same projection in the other layers: modified z-score of its
  logarithm above ``outlier`` (Iglewicz and Hoaglin 1993, who give 3.5). The spread is taken to be a tenth at least, so
  that layers that agree closely do not make outliers of each other.

The default ``error`` of 0.1 keeps 99 % of Σσ², the share that adapters are usually cut at.
"""

from __future__ import annotations

import math
from collections import defaultdict
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from lora_lab.analyses.each_spectrum import each_spectrum
from lora_lab.analyses.health_columns import MODULES, TOTALS
from lora_lab.analyses.scope import adapter_of, outside_findings, selected
from lora_lab.analyses.summaries import counted, summarised
from lora_lab.analyses.watching import watched
from lora_lab.domain.modules import layer_of, projection_of
from lora_lab.domain.parameters import Parameter, ParameterKind
from lora_lab.domain.report import Finding, Report, Scalars, Table
from lora_lab.errors import quoted
from lora_lab.extension.contracts import Need
from lora_lab.linalg.measures import (
    effective_rank,
    error_rank,
    frobenius_norm,
    numerical_rank,
    rank_tolerance,
    relative_errors,
    stable_rank,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lora_lab.domain.adapter import Delta
    from lora_lab.errors import NumericalError
    from lora_lab.extension.contracts import AnalysisContext

# Layers that a spread can be told from, and the least spread of ln ‖ΔW‖_F.
_FEWEST_LAYERS: Final = 5
_LEAST_SPREAD: Final = 0.1
# Turns the median absolute deviation of a normal distribution into its standard deviation.
_TO_DEVIATION: Final = 1.4826

_Spectra = dict[str, list[float]]


class Health:
    """Codes for what is odd about each module's ΔW, from its singular values, and a suggested rank with its error."""

    id = "health"
    title = "Health"
    summary = "Dead, near rank-one and over-parametrised modules; the rank that would do and the error it costs."
    reference = "arXiv 2106.09685, section 7.2; Eckart & Young, Psychometrika 1 (1936)"
    parameters = (
        Parameter(
            "error", "Relative Frobenius error that a lower rank may cost", ParameterKind.NUMBER, 0.1, 0.0, 0.999
        ),
        Parameter("over_share", "Over-parametrised at this share of r or less", ParameterKind.NUMBER, 0.5, 0.0, 1.0),
        Parameter("rank_one_share", "Near rank one at this share of Σσ² in σ₁²", ParameterKind.NUMBER, 0.9, 0.0, 1.0),
        Parameter("outlier", "Outlying at this |z| of ln ‖ΔW‖_F", ParameterKind.NUMBER, 3.5, 0.0),
    )
    subjects = (1, 1)
    takes_models = False
    base = Need.NO

    def run(self, context: AnalysisContext) -> Report:
        """Look at every module.

        Raises
        ------
        AdapterError
            ΔW cannot be computed from the adapter's files, or no module matches.

        Notes
        -----
        Factors that are not finite are a finding of their module, not an error. The cost is that of the spectrum.
        """
        adapter = adapter_of(context)
        deltas = selected(adapter, context.modules)
        settings = {parameter.id: parameter.default for parameter in self.parameters} | dict(context.parameters)
        failures: dict[str, NumericalError] = {}
        spectra: _Spectra = {}
        rows = list(watched(_rows(deltas, context, settings, spectra, failures), len(deltas), context.observer))
        _compare_layers(rows, settings["outlier"])
        findings = [*adapter.findings, *outside_findings(adapter), *_findings(rows, settings, failures)]
        return Report(
            command=self.id,
            title=f"Health of {adapter.name}",
            tables=(Table("modules", "Modules", MODULES, tuple(rows)),),
            scalars=(Scalars("totals", "Totals", TOTALS, _totals(deltas, rows, spectra, settings["error"])),),
            findings=tuple(dict.fromkeys(findings)),
        )


def _rows(
    deltas: Sequence[Delta],
    context: AnalysisContext,
    settings: Mapping[str, Any],
    spectra: _Spectra,
    failures: dict[str, NumericalError],
) -> Iterator[dict[str, Any]]:
    """Yield one row for each delta, in order; `spectra` takes the singular values, `failures` what is not finite."""
    for delta, singular_values in each_spectrum(deltas, context, failures):
        if singular_values is None:
            empty = dict.fromkeys(column.id for column in MODULES)
            yield {**empty, **_identity(delta), "findings": ["not_finite"]}
        else:
            spectra[delta.module] = singular_values
            yield _row(delta, singular_values, settings)


def _identity(delta: Delta) -> dict[str, Any]:
    return {"module": delta.module, "shape": list(delta.shape), "rank": delta.rank}


def _row(delta: Delta, singular_values: list[float], settings: Mapping[str, Any]) -> dict[str, Any]:
    tolerance = rank_tolerance([delta.lora_A.dtype, delta.lora_B.dtype], delta.rank)
    used = numerical_rank(singular_values, tolerance=tolerance)
    suggested = error_rank(singular_values, settings["error"]) or 0
    errors = relative_errors(singular_values)
    stable = stable_rank(singular_values)
    codes = []
    if stable is None:
        codes.append("dead")
    else:
        if delta.rank > 1 and 1.0 / stable >= settings["rank_one_share"]:
            codes.append("near_rank_one")
        if delta.rank > 1 and suggested <= settings["over_share"] * delta.rank:
            codes.append("over_parametrised")
        if used < delta.rank:
            codes.append("unused_directions")
    return {
        **_identity(delta),
        "findings": codes,
        "suggested_rank": suggested,
        "relative_error": errors[suggested - 1] if errors else None,
        "frobenius_norm": frobenius_norm(singular_values),
        "numerical_rank": used,
        "stable_rank": stable,
        "effective_rank": effective_rank(singular_values),
        "norm_z_score": None,
    }


def _compare_layers(rows: Sequence[dict[str, Any]], outlier: float) -> None:
    """Fill in the z-scores, each norm among those of the same projection and shape in the other layers."""
    groups: defaultdict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["frobenius_norm"] and layer_of(row["module"]) is not None:
            groups[projection_of(row["module"]), *row["shape"]].append(row)
    for group in groups.values():
        if len(group) < _FEWEST_LAYERS:
            continue
        logarithms = [math.log(row["frobenius_norm"]) for row in group]
        middle = median(logarithms)
        deviation = _TO_DEVIATION * median(abs(value - middle) for value in logarithms)
        spread = max(deviation, _LEAST_SPREAD)
        for row, value in zip(group, logarithms, strict=True):
            row["norm_z_score"] = (value - middle) / spread
            if abs(row["norm_z_score"]) > outlier:
                row["findings"].append("outlier_norm")


def _totals(deltas: Sequence[Delta], rows: Sequence[dict[str, Any]], spectra: _Spectra, error: float) -> dict[str, Any]:
    parameters = sum(delta.parameters for delta in deltas)
    suggested = [
        delta.parameters if row["suggested_rank"] is None else _cut(delta, row["suggested_rank"])
        for delta, row in zip(deltas, rows, strict=True)
    ]
    lost = [row["relative_error"] * row["frobenius_norm"] for row in rows if row["relative_error"] is not None]
    whole = math.hypot(*(row["frobenius_norm"] for row in rows if row["frobenius_norm"] is not None))
    uniform = _uniform(list(spectra.values()), error)
    codes = ("dead", "not_finite", "near_rank_one", "over_parametrised", "unused_directions", "outlier_norm")
    return {
        "modules": len(rows),
        **{code: sum(code in row["findings"] for row in rows) for code in codes},
        "parameters": parameters,
        "suggested_parameters": sum(suggested),
        "saved_share": 1.0 - sum(suggested) / parameters if parameters else None,
        "relative_error": math.hypot(*lost) / whole if whole else None,
        "largest_suggested_rank": max((row["suggested_rank"] or 0 for row in rows), default=None),
        "uniform_rank": uniform and uniform[0],
        "uniform_rank_error": uniform and uniform[1],
    }


def _cut(delta: Delta, rank: int) -> int:
    """Elements of A and B at another rank."""
    return round(delta.parameters * rank / delta.rank) if delta.rank else 0


def _uniform(spectra: Sequence[Sequence[float]], error: float) -> tuple[int, float] | None:
    """The least rank for all modules whose error together is at most `error`, and that error; None if all are zero.

    The k-th singular values of all modules make up one "singular value" √Σ_m σ_k²; the law for one spectrum then holds.
    """
    longest = max((len(values) for values in spectra), default=0)
    merged = [math.hypot(*(values[place] for values in spectra if place < len(values))) for place in range(longest)]
    rank, errors = error_rank(merged, error), relative_errors(merged)
    return None if rank is None or errors is None else (rank, errors[rank - 1])


def _findings(
    rows: Sequence[dict[str, Any]], settings: Mapping[str, Any], failures: Mapping[str, NumericalError]
) -> Iterator[Finding]:
    """Yield one finding for each code that a module has."""
    said = {
        "dead": "ΔW is zero, so that nothing changes and ratios of the spectrum are undefined",
        "near_rank_one": f"one direction holds {settings['rank_one_share']:.0%} of Σσ² or more",
        "over_parametrised": (
            f"{settings['over_share']:.0%} of the rank or less would do at a relative error of {settings['error']:g}"
        ),
        "unused_directions": (
            "the numerical rank is below r, some directions being zero or combinations of others to the precision of "
            "the stored type"
        ),
        "outlier_norm": "‖ΔW‖_F is far from that of the same projection in the other layers",
    }
    if failures:
        modules = list(failures)
        listed = f" So it is with {len(modules)} modules: {summarised(map(quoted, modules))}." if modules[1:] else ""
        yield Finding("not_finite", f"{failures[modules[0]]}{listed}", modules[0] if len(modules) == 1 else None)
    for code, sentence in said.items():
        modules = [row["module"] for row in rows if code in row["findings"]]
        if modules:
            yield Finding(
                code,
                f"In {counted(modules, 'module', 'modules')} {sentence}: {summarised(map(quoted, modules))}.",
                modules[0] if len(modules) == 1 else None,
            )
