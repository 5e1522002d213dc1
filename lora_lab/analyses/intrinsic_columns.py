"""The quantities of a full fine-tune's update, each declared once."""

from __future__ import annotations

from typing import Final

from lora_lab.analyses.columns import MEASURES
from lora_lab.domain.report import Column, ColumnKind

_ECKART_YOUNG: Final = "Eckart & Young, Psychometrika 1 (1936)"
_RANKS: Final = tuple(column for column in MEASURES if column.id in ("energy_rank", "effective_rank", "stable_rank"))

MODULES: Final = (
    Column("module", "Module", ColumnKind.TEXT),
    Column("shape", "Shape", ColumnKind.SHAPE, formula="rows and columns that are compared"),
    Column("base_norm", "‖W₀‖_F", formula="√Σw² of the base's weight"),
    Column("update_norm", "‖ΔW‖_F", formula="√Σσ², ΔW = W_ft − W₀"),
    Column("relative_norm", "Relative", formula="‖ΔW‖_F/‖W₀‖_F"),
    Column(
        "singular_values",
        "σ",
        ColumnKind.CURVE,
        formula="every σ of ΔW = W_ft − W₀, formed and decomposed in float64",
        reference="Golub & Van Loan, Matrix Computations, section 8.6",
        index_title="k",
        is_logarithmic=True,
    ),
    *_RANKS,
    Column(
        "reconstruction",
        "Reconstruction",
        ColumnKind.RECORDS,
        formula="relative_error = √(Σ_{i>rank} σᵢ²/Σσᵢ²) at powers of two and at full rank",
        reference=_ECKART_YOUNG,
    ),
    Column(
        "reconstruction_error",
        "Error by rank",
        ColumnKind.CURVE,
        formula="√(Σ_{i>k} σᵢ²/Σσᵢ²): ‖ΔW − best of rank k‖_F/‖ΔW‖_F",
        reference=_ECKART_YOUNG,
        index_title="k",
        low=0.0,
        high=1.0,
    ),
    Column(
        "rounding_norm",
        "‖rounding‖_F",
        formula="√(Σ ulp(w)²/12): expected of rounding W_ft once to the coarser of the two types",
        reference="Widrow & Kollár, Quantization Noise (2008)",
        is_wide=True,
    ),
    Column(
        "rounding_edge",
        "Rounding edge",
        formula="max row norm + max column norm of ulp(w)/√12: the σ₁ expected of rounding alone",
        reference="Bandeira & van Handel, Ann. Probab. 44 (2016)",
        is_marker=True,
        is_wide=True,
    ),
)

RANKS: Final = (
    Column("rank", "r", ColumnKind.INTEGER),
    Column(
        "relative_error",
        "Relative error",
        formula="√(Σ_m Σ_{i>r} σᵢ²/Σ_m Σσᵢ²): all matrices at rank r together",
        reference=_ECKART_YOUNG,
        low=0.0,
        high=1.0,
    ),
    Column("parameters", "Parameters", ColumnKind.INTEGER, formula="Σ min(r·(rows + columns), rows·columns)"),
    Column("share", "Share", formula="parameters/elements of the matrices"),
)

WHOLE: Final = (
    Column("prefix", "Prefix", ColumnKind.TEXT, formula="what happens to a name's path; empty: nothing"),
    Column("only_in_a", "Only in the base", ColumnKind.LIST),
    Column("only_in_b", "Only in the fine-tune", ColumnKind.LIST),
    Column("resized", "Resized", ColumnKind.LIST, formula="compared on the rows that both have"),
)

TOTALS: Final = (
    Column("modules", "Matrices", ColumnKind.INTEGER),
    Column("unchanged", "Unchanged", ColumnKind.INTEGER, formula="#{ΔW = 0}"),
    Column("parameters", "Elements", ColumnKind.INTEGER, formula="Σ rows·columns that are compared"),
    Column("base_norm", "‖W₀‖_F", formula="√Σ‖W₀‖_F² over the matrices"),
    Column("update_norm", "‖ΔW‖_F", formula="√Σ‖ΔW‖_F² over the matrices"),
    Column("relative_norm", "Relative", formula="‖ΔW‖_F/‖W₀‖_F over the matrices"),
    Column("rounding_norm", "‖rounding‖_F", formula="√Σ(expected ‖rounding‖_F)² over the matrices"),
    Column("largest_module", "Largest change", ColumnKind.TEXT, formula="argmax ‖ΔW‖_F/‖W₀‖_F"),
    Column("mean_effective_rank", "Mean effective rank", formula="mean of exp(H(σ/Σσ)) over the matrices that changed"),
    Column("others", "Vectors and scalars", ColumnKind.INTEGER, formula="biases, norms and the like, in no row"),
    Column("others_base_norm", "Their ‖w₀‖", formula="√Σw₀²"),
    Column("others_update_norm", "Their ‖Δw‖", formula="√Σ(w_ft − w₀)²"),
)
