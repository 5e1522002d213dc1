"""The quantities of the random-matrix view: title, unit, formula and source of each."""

from __future__ import annotations

from typing import Final

from lora_lab.domain.report import Column, ColumnKind

_GAVISH: Final = "Gavish & Donoho, arXiv 1305.5870"
_WEAK: Final = "Ipsen & Kieburg, arXiv 1310.4154; Burda, Janik & Waclaw, arXiv 0912.3422"

_MODULE: Final = Column("module", "Module", ColumnKind.TEXT)
_SHAPE: Final = Column("shape", "Shape", ColumnKind.SHAPE)
_SINGULAR_VALUES: Final = Column(
    "singular_values",
    "σ",
    ColumnKind.CURVE,
    formula="singular values of ΔW, descending",
    index_title="k",
    is_logarithmic=True,
)
_LEARNT: Final = Column("learnt", "Learnt", ColumnKind.INTEGER, formula="#{k: σ_k > edge}")

FACTORED: Final[tuple[Column, ...]] = (
    _MODULE,
    _SHAPE,
    Column("rank", "r", ColumnKind.INTEGER),
    _LEARNT,
    Column("excess_energy", "Excess energy", formula="Σ_{σ_k > edge} (σ_k² − random_expected_k²)/Σσ²"),
    _SINGULAR_VALUES,
    Column(
        "random_expected",
        "random",
        ColumnKind.CURVE,
        formula="σ of s·B·A for Gaussian B and A of the same norms: quantiles (k−½)/N of two Marchenko–Pastur laws' "
        "free product",
        reference=_WEAK,
        index_title="k",
        is_logarithmic=True,
    ),
    Column(
        "random_upper",
        "random, upper",
        ColumnKind.CURVE,
        formula="quantile of the k-th largest σ over seeded draws of the random core",
        reference=_WEAK,
        index_title="k",
        is_logarithmic=True,
    ),
    Column(
        "edge",
        "Edge",
        formula="quantile of σ₁ of random factors of the same norms; "
        "ΔW has no noise level of its own: the median of its σ is 0",
        is_marker=True,
    ),
    Column("exceeding", "Exceeding", ColumnKind.LIST, formula="k with σ_k > random_upper_k", is_wide=True),
)

FULL: Final[tuple[Column, ...]] = (
    _MODULE,
    _SHAPE,
    Column("learnt", "Learnt", ColumnKind.INTEGER, formula="#{k: σ_k > threshold}"),
    Column("above_edge", "Above edge", ColumnKind.INTEGER, formula="#{k: σ_k > edge}"),
    Column("excess_energy", "Excess energy", formula="Σ_{σ_k > threshold} (σ_k² − edge²)/Σσ²"),
    _SINGULAR_VALUES,
    Column(
        "edge",
        "Marchenko–Pastur edge",
        formula="τ(√out + √in)",
        reference="Marchenko & Pastur, Math. USSR Sbornik 1 (1967)",
        is_marker=True,
    ),
    Column(
        "threshold",
        "Threshold",
        formula="quantile of σ₁ of noise: τ√(μ + s·TW₁)",
        reference="Johnstone, Ann. Stat. 29 (2001); Chiani, arXiv 1209.3394",
        is_marker=True,
    ),
    Column("noise", "τ", formula="median(σ)/√(max(out, in)·μ_β)", reference=_GAVISH),
)

TOTALS: Final = (
    Column("modules", "Modules", ColumnKind.INTEGER),
    Column("learnt", "Learnt directions", ColumnKind.INTEGER, formula="sum over the modules"),
    Column("modules_without", "Modules without any", ColumnKind.INTEGER, formula="#{module: learnt = 0}"),
)
