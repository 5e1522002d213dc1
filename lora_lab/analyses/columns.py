"""The quantities of a spectrum, each declared once: title, unit, formula and source."""

from __future__ import annotations

from typing import Final

from lora_lab.domain.report import Column, ColumnKind

IDENTITY: Final = (
    Column("module", "Module", ColumnKind.TEXT),
    Column("shape", "Shape", ColumnKind.SHAPE, formula="of ΔW as the base stores the weight"),
    Column("rank", "r", ColumnKind.INTEGER, formula="rows of lora_A, columns of lora_B"),
    Column("scaling", "Scaling", formula="alpha/r, or alpha/√r for rsLoRA", reference="arXiv 2106.09685, section 4.1"),
)

SINGULAR_VALUES: Final = Column(
    "singular_values",
    "σ",
    ColumnKind.CURVE,
    formula="σ of ΔW = scaling·B·A, from the r×r core of the factors' QR",
    reference="Golub & Van Loan, Matrix Computations, sections 5.2 and 8.6",
    index_title="k",
    is_logarithmic=True,
)

MEASURES: Final = (
    Column("frobenius_norm", "‖ΔW‖_F", formula="√Σσ²"),
    Column("spectral_norm", "σ₁", formula="‖ΔW‖₂ = max σ"),
    Column("nuclear_norm", "Σσ", formula="‖ΔW‖_* = Σσ", is_wide=True),
    Column(
        "stable_rank",
        "Stable rank",
        formula="‖ΔW‖_F²/‖ΔW‖₂²",
        reference="Rudelson & Vershynin, J. ACM 54 (2007)",
    ),
    Column(
        "effective_rank",
        "Effective rank",
        formula="exp(H(p)), p = σ/Σσ, H(p) = −Σ p ln p",
        reference="Roy & Vetterli, EUSIPCO 2007",
    ),
    Column(
        "participation_ratio",
        "Participation",
        formula="(Σσ²)²/Σσ⁴",
        reference="Bell & Dean, Discuss. Faraday Soc. 50 (1970)",
        is_wide=True,
    ),
    Column(
        "numerical_rank",
        "Numerical rank",
        ColumnKind.INTEGER,
        formula="#{σ > τ·σ₁}, τ = max(ε_stored, 4·√r·ε_computed)",
    ),
    Column(
        "energy_effective_rank",
        "Effective rank of energies",
        formula="exp(H(p)), p = σ²/Σσ², H(p) = −Σ p ln p",
        reference="Roy & Vetterli, EUSIPCO 2007, with σ² for σ",
        is_wide=True,
    ),
    Column(
        "nuclear_norm_ratio",
        "Σσ/‖ΔW‖_F",
        formula="‖ΔW‖_*/‖ΔW‖_F",
        reference="Lopes, ICML 2013",
        is_wide=True,
    ),
    Column(
        "energy_rank",
        "Energy rank",
        ColumnKind.MAPPING,
        formula="least k with Σ_{i≤k} σᵢ² ≥ share·Σσ²",
        is_wide=True,
    ),
)

TOTALS: Final = (
    Column("modules", "Modules", ColumnKind.INTEGER),
    Column("parameters", "Parameters", ColumnKind.INTEGER, formula="elements of A and B, Σ r·(out + in)"),
    Column("frobenius_norm", "‖ΔW‖_F", formula="√Σ‖ΔW‖_F² over the finite modules"),
    Column("largest_module", "Largest module", ColumnKind.TEXT, formula="argmax ‖ΔW‖_F"),
    Column("largest_norm", "Largest ‖ΔW‖_F", formula="max ‖ΔW‖_F"),
    Column(
        "mean_effective_rank",
        "Mean effective rank",
        formula="mean of exp(H(σ/Σσ)) over the modules whose ΔW is not zero",
        reference="Roy & Vetterli, EUSIPCO 2007",
    ),
    Column("zero_modules", "Zero modules", ColumnKind.INTEGER, formula="#{ΔW = 0}"),
    Column("not_finite_modules", "Not finite", ColumnKind.INTEGER, formula="modules that hold NaN or infinity"),
)

LAYERS: Final = (
    Column("layer", "Layer", ColumnKind.VALUE, formula="first number in the module's path; – without one"),
    Column("modules", "Modules", ColumnKind.INTEGER),
    Column("frobenius_norm", "‖ΔW‖_F", formula="√Σ‖ΔW‖_F² over the layer's finite modules"),
)
