"""The quantities of a budget, each declared once: title, unit, formula and source."""

from __future__ import annotations

from typing import Final

from lora_lab.domain.report import Column, ColumnKind

_PAPER: Final = "arXiv 2106.09685, section 4.2"
_MEMORY: Final = "arXiv 1910.02054, section 3.1: Adam in mixed precision"

ROWS: Final = (
    Column("targets", "Targets", ColumnKind.TEXT),
    Column("matrices", "Matrices", ColumnKind.INTEGER, formula="L̂, the number of matrices with LoRA"),
    Column("rank", "r", ColumnKind.INTEGER),
    Column(
        "parameters",
        "Parameters",
        ColumnKind.INTEGER,
        formula="Σ r·(out + in) over the matrices; DoRA and lora_bias add out each",
        reference=_PAPER,
    ),
    Column(
        "trained", "Trained", ColumnKind.INTEGER, formula="parameters + head, what PEFT calls trainable", is_wide=True
    ),
    Column("share", "Share", formula="parameters / parameters of the model"),
    Column("bytes", "Adapter", ColumnKind.BYTES, "bytes", formula="parameters · bytes of one in the base's dtype"),
    Column(
        "compression", "Compression", formula="Σ out·in / parameters; of one matrix d·k/(r·(d+k))", reference=_PAPER
    ),
    Column(
        "bytes_for_tasks",
        "All tasks",
        ColumnKind.BYTES,
        "bytes",
        formula="(model + tasks·(parameters + head)) · bytes of one",
        reference=_PAPER,
    ),
    Column(
        "full_bytes_for_tasks",
        "As full copies",
        ColumnKind.BYTES,
        "bytes",
        formula="tasks · (model + head) · bytes of one",
        reference=_PAPER,
        is_wide=True,
    ),
    Column(
        "training_bytes",
        "Training",
        ColumnKind.BYTES,
        "bytes",
        formula="2·model + 16·(parameters + head): 2 for a frozen weight; 2 weight, 2 gradient, 4 master copy and 4+4 "
        "moments for a trained one; without activations",
        reference=_MEMORY,
    ),
    Column(
        "full_training_bytes",
        "Full fine-tuning",
        ColumnKind.BYTES,
        "bytes",
        formula="16·(model + head), the same terms; without activations",
        reference=_MEMORY,
        is_wide=True,
    ),
)

MATRICES: Final = (
    Column("module", "Module", ColumnKind.TEXT),
    Column("count", "Count", ColumnKind.INTEGER),
    Column("shape", "Shape", ColumnKind.SHAPE, formula="as the base stores it"),
    Column("kind", "Kind", ColumnKind.TEXT),
    Column("elements", "Elements", ColumnKind.INTEGER, formula="count·out·in", is_wide=True),
    Column("parameters_per_rank", "For rank 1", ColumnKind.INTEGER, formula="count·(out + in)"),
)

MODEL: Final = (
    Column(
        "model_parameters",
        "Parameters of the model",
        ColumnKind.INTEGER,
        formula="elements of all weights, tied ones once",
    ),
    Column("model_bytes", "Model", ColumnKind.BYTES, "bytes", formula="parameters · bytes of one"),
    Column(
        "bytes_per_parameter", "Bytes of one", ColumnKind.INTEGER, "bytes", formula="of the base's dtype, at least 2"
    ),
    Column("dtype", "dtype", ColumnKind.TEXT, formula="that of most weights, or the configuration's; none: 2 bytes"),
    Column("shapes_from", "Shapes from", ColumnKind.TEXT, formula="tensors, configuration or given"),
    Column("tasks", "Tasks", ColumnKind.INTEGER),
    Column("head", "Head", ColumnKind.INTEGER, formula="parameters trained anew for each task"),
)
