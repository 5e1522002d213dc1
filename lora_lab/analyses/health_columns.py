"""The quantities of an adapter's health, each declared once."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from lora_lab.analyses.columns import IDENTITY, MEASURES
from lora_lab.domain.report import Column, ColumnKind

_ECKART_YOUNG: Final = "Eckart & Young, Psychometrika 1 (1936)"
_IDENTITY: Final = tuple(column for column in IDENTITY if column.id != "scaling")
# Where room is short, the findings are worth more than the measures that they come from.
_KNOWN: Final = {column.id: replace(column, is_wide=True) for column in MEASURES}

MODULES: Final = (
    *_IDENTITY,
    Column("findings", "Findings", ColumnKind.LIST, formula="codes; none: nothing to say"),
    Column(
        "suggested_rank",
        "Suggested rank",
        ColumnKind.INTEGER,
        formula="least k with √(Σ_{i>k} σᵢ²/Σσᵢ²) ≤ error; 0 when ΔW = 0",
        reference=_ECKART_YOUNG,
    ),
    Column(
        "relative_error",
        "Relative error",
        formula="√(Σ_{i>k} σᵢ²/Σσᵢ²) at the suggested rank k",
        reference=_ECKART_YOUNG,
    ),
    _KNOWN["frobenius_norm"],
    _KNOWN["numerical_rank"],
    _KNOWN["stable_rank"],
    _KNOWN["effective_rank"],
    Column(
        "norm_z_score",
        "z of ln ‖ΔW‖_F",
        formula="(x − median)/max(1.4826·MAD, 0.1), x = ln ‖ΔW‖_F, over the same projection of 5 layers or more",
        reference="Iglewicz & Hoaglin, How to Detect and Handle Outliers (1993)",
        is_wide=True,
    ),
)

TOTALS: Final = (
    Column("modules", "Modules", ColumnKind.INTEGER),
    Column("dead", "Dead", ColumnKind.INTEGER, formula="#{ΔW = 0}"),
    Column("not_finite", "Not finite", ColumnKind.INTEGER, formula="#{a factor holds NaN or infinity}"),
    Column("near_rank_one", "Near rank one", ColumnKind.INTEGER, formula="#{r > 1, σ₁²/Σσ² ≥ rank_one_share}"),
    Column(
        "over_parametrised", "Over-parametrised", ColumnKind.INTEGER, formula="#{suggested rank ≤ over_share·r, r > 1}"
    ),
    Column("unused_directions", "Unused directions", ColumnKind.INTEGER, formula="#{0 < numerical rank < r}"),
    Column("outlier_norm", "Outlying norm", ColumnKind.INTEGER, formula="#{|z of ln ‖ΔW‖_F| > outlier}"),
    Column("parameters", "Parameters", ColumnKind.INTEGER, formula="elements of A and B, Σ r·(out + in)"),
    Column("suggested_parameters", "At suggested ranks", ColumnKind.INTEGER, formula="Σ suggested r·(out + in)"),
    Column("saved_share", "Saved", formula="1 − suggested parameters/parameters"),
    Column(
        "relative_error",
        "Relative error",
        formula="√(Σ_m Σ_{i>k} σᵢ²/Σ_m Σσᵢ²) at each module's suggested rank k",
        reference=_ECKART_YOUNG,
    ),
    Column("largest_suggested_rank", "Largest suggested rank", ColumnKind.INTEGER, formula="max suggested rank"),
    Column(
        "uniform_rank",
        "Uniform rank",
        ColumnKind.INTEGER,
        formula="least k with √(Σ_m Σ_{i>k} σᵢ²/Σ_m Σσᵢ²) ≤ error",
        reference=_ECKART_YOUNG,
    ),
    Column("uniform_rank_error", "Its relative error", formula="√(Σ_m Σ_{i>k} σᵢ²/Σ_m Σσᵢ²) at that rank"),
)
