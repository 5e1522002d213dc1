"""What LoRA would cost on a model, from the shapes of its matrices: no weight is read."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final

from lora_lab.analyses.budget_columns import MATRICES, MODEL, ROWS
from lora_lab.analyses.budget_shapes import ALL_LINEAR, chosen_matrices, model_of
from lora_lab.domain.parameters import Parameter, ParameterKind
from lora_lab.domain.progress import stop_if_cancelled
from lora_lab.domain.report import Finding, Report, Scalars, Table
from lora_lab.domain.sheet import WeightKind
from lora_lab.errors import LoraLabError, quoted
from lora_lab.extension.contracts import Need

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lora_lab.analyses.budget_shapes import Matrix, Model
    from lora_lab.domain.tensors import TensorRef
    from lora_lab.extension.contracts import AnalysisContext

FROZEN_BYTES: Final = 2
TRAINED_BYTES: Final = 16  # 2 weight, 2 gradient, 4 master copy, 4 + 4 Adam's moments
_APART: Final = re.compile(r"\.experts\.[0-9]+\.")
_RANKS: Final = (1, 2, 4, 8, 16, 32, 64)


class Budget:
    """Parameters Σ r·(out + in) of LoRA on chosen matrices, and what follows from them."""

    id = "budget"
    title = "Budget"
    summary = "What a rank would cost on a model, or what rank a number of parameters buys; no weights are read."
    reference = "arXiv 2106.09685, section 4.2"
    parameters = (
        Parameter(
            "targets",
            "Names, ends of names or globs separated by commas, or all-linear: one row each",
            ParameterKind.TEXT,
            None,
            is_repeatable=True,
        ),
        Parameter(
            "matrix",
            "COUNTxOUTxIN or NAME=COUNTxOUTxIN instead of a model",
            ParameterKind.TEXT,
            None,
            is_repeatable=True,
        ),
        Parameter("rank", "Rank", ParameterKind.INTEGER, None, minimum=1, maximum=1 << 20, is_repeatable=True),
        Parameter(
            "parameters",
            "Parameters to spend: the largest rank that costs no more, and the next",
            ParameterKind.INTEGER,
            None,
            minimum=1,
        ),
        Parameter("tasks", "Tasks, each with an adapter of its own", ParameterKind.INTEGER, 1, minimum=1),
        Parameter(
            "head",
            "Parameters trained anew for each task besides, such as a classifier",
            ParameterKind.INTEGER,
            0,
            minimum=0,
        ),
        Parameter(
            "model_parameters",
            "Parameters of the whole model, where it is not given",
            ParameterKind.INTEGER,
            None,
            minimum=1,
        ),
        Parameter("dora", "Count DoRA's magnitudes", ParameterKind.BOOLEAN, False),
        Parameter("lora_bias", "Count biases of lora_B", ParameterKind.BOOLEAN, False),
    )
    subjects = (0, 1)
    takes_models = True
    base = Need.NO
    is_on_processor = True

    def reads(self, context: AnalysisContext) -> list[TensorRef]:
        """None: headers say all shapes."""
        del context
        return []

    def run(self, context: AnalysisContext) -> Report:
        """Count, in integers.

        Raises
        ------
        CompatibilityError
            no shapes can be had, or a set of targets matches nothing.
        LoraLabError
            two settings exclude each other, or a matrix is not written COUNTxOUTxIN.

        Notes
        -----
        All counts are exact integers. A kernel counts as ungrouped: its stored shape does not say its groups. Training
        memory is a count of weights, gradients and Adam's moments, not of what a machine held: for GPT-3 it gives
        2.8 TB and 350 GB where the paper measured 1.2 TB and 350 GB (section 4.2). O(matrices·rows) time.
        """
        values = context.parameters
        if values["rank"] and values["parameters"] is not None:
            raise LoraLabError(
                "Both a rank and a number of parameters are given, expected one of them.",
                hint="Leave --rank or --parameters out.",
            )
        if values["dora"] and values["lora_bias"]:
            raise LoraLabError(
                "Both dora and lora_bias are asked for, expected one of them: PEFT has no DoRA with biases."
            )
        model = model_of(context)
        rows: list[dict[str, Any]] = []
        findings = list(model.findings)
        for targets in values["targets"] or (_default_targets(model),):
            stop_if_cancelled(context.observer)
            matrices, lost = chosen_matrices(model, targets)
            rows.extend(_row(targets, matrices, rank, model, values) for rank in _ranks(matrices, values))
            findings.extend(_target_findings(targets, matrices, lost, model))
            findings.extend(_rank_findings(targets, matrices, values))
        return Report(
            command=self.id,
            title=f"Budget of {model.name}",
            tables=(
                Table("rows", "Alternatives", ROWS, tuple(rows), key="targets"),
                Table("matrices", "Matrices", MATRICES, tuple(_kinds(model.matrices))),
            ),
            scalars=(Scalars("", "Model", MODEL, _model(model, values)),),
            findings=tuple(findings),
        )


def _default_targets(model: Model) -> str:
    return "*" if model.source == "given" else ALL_LINEAR


def _fixed(matrices: Sequence[Matrix], values: Mapping[str, Any]) -> int:
    """Parameters that do not grow with the rank: one per output for DoRA's magnitudes, one for lora_B's biases.

    An embedding's lora_B has no bias in PEFT.
    """
    magnitudes = sum(matrix.count * matrix.outputs for matrix in matrices) if values["dora"] else 0
    if not values["lora_bias"]:
        return magnitudes
    return magnitudes + sum(matrix.count * matrix.outputs for matrix in matrices if matrix.kind != WeightKind.EMBEDDING)


def _cost(matrices: Sequence[Matrix], rank: int, values: Mapping[str, Any]) -> int:
    return rank * sum(matrix.per_rank for matrix in matrices) + _fixed(matrices, values)


def _ranks(matrices: Sequence[Matrix], values: Mapping[str, Any]) -> Sequence[int]:
    """The ranks asked for, or the largest that the parameters buy and the next."""
    if values["parameters"] is None:
        return values["rank"] or _RANKS
    bought = _bought(matrices, values)
    return (bought, bought + 1) if bought else (1,)


def _bought(matrices: Sequence[Matrix], values: Mapping[str, Any]) -> int:
    left: int = values["parameters"] - _fixed(matrices, values)
    return max(left, 0) // sum(matrix.per_rank for matrix in matrices)


def _row(
    targets: str, matrices: Sequence[Matrix], rank: int, model: Model, values: Mapping[str, Any]
) -> dict[str, Any]:
    parameters = _cost(matrices, rank, values)
    tasks, head, width = values["tasks"], values["head"], model.bytes_per_parameter
    trained = parameters + head
    return {
        "targets": targets,
        "matrices": sum(matrix.count for matrix in matrices),
        "rank": rank,
        "parameters": parameters,
        "trained": trained,
        "share": parameters / model.parameters,
        "bytes": parameters * width,
        "compression": sum(matrix.elements for matrix in matrices) / parameters,
        "bytes_for_tasks": (model.parameters + tasks * trained) * width,
        "full_bytes_for_tasks": tasks * (model.parameters + head) * width,
        "training_bytes": FROZEN_BYTES * model.parameters + TRAINED_BYTES * trained,
        "full_training_bytes": TRAINED_BYTES * (model.parameters + head),
    }


def _target_findings(targets: str, matrices: Sequence[Matrix], lost: Sequence[str], model: Model) -> Iterator[Finding]:
    for part in lost:
        yield Finding(
            "target_unmatched",
            f"{quoted(part)} of the targets {quoted(targets)} matches no matrix of {quoted(model.name)}.",
        )
    if any(matrix.ranks > 1 for matrix in matrices):
        yield Finding(
            "fused_experts",
            f"Gate and up of an expert are one matrix: with {ALL_LINEAR} PEFT gives it twice the rank, counted here.",
        )
    if any(_APART.search(matrix.module) for matrix in matrices):
        yield Finding(
            "experts_apart",
            "The experts are counted one by one, as the file holds them; a library that stacks them may train more.",
        )


def _rank_findings(targets: str, matrices: Sequence[Matrix], values: Mapping[str, Any]) -> Iterator[Finding]:
    wanted = values["parameters"]
    if wanted is not None and not _bought(matrices, values):
        yield Finding(
            "nothing_bought",
            f"{wanted} parameters buy no rank on {quoted(targets)}: rank 1 takes {_cost(matrices, 1, values)}.",
        )
    smallest = min(matrices, key=lambda matrix: min(matrix.outputs, matrix.inputs))
    side = min(smallest.outputs, smallest.inputs)
    largest = max(_ranks(matrices, values) if wanted is not None or values["rank"] else (1,))
    if largest > side:
        yield Finding(
            "rank_over_side",
            f"Rank {largest} on {quoted(targets)} exceeds {side}, the smaller side of {quoted(smallest.module)}, "
            "beyond which more rank adds nothing.",
            smallest.module,
        )


def _model(model: Model, values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "model_parameters": model.parameters,
        "model_bytes": model.parameters * model.bytes_per_parameter,
        "bytes_per_parameter": model.bytes_per_parameter,
        "dtype": model.dtype.value if model.dtype else None,
        "shapes_from": model.source,
        "tasks": values["tasks"],
        "head": values["head"],
    }


def _kinds(matrices: Sequence[Matrix]) -> Iterator[dict[str, Any]]:
    """Yield one row for each kind of matrix: what the layers have in common, with ``*`` for their numbers."""
    alike: defaultdict[tuple[str, tuple[int, ...], WeightKind], list[Matrix]] = defaultdict(list)
    for matrix in matrices:
        pattern = ".".join("*" if part.isdigit() else part for part in matrix.module.split("."))
        alike[pattern, matrix.shape, matrix.kind].append(matrix)
    for (pattern, shape, kind), group in alike.items():
        yield {
            "module": pattern,
            "count": sum(matrix.count for matrix in group),
            "shape": list(shape),
            "kind": kind.value,
            "elements": sum(matrix.elements for matrix in group),
            "parameters_per_rank": sum(matrix.per_rank for matrix in group),
        }
