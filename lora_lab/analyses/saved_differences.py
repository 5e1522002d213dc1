"""Two adapters' tensors beside their factors: saved modules, biases, magnitudes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from lora_lab.domain.modules import natural_key, select_modules
from lora_lab.domain.report import Column, ColumnKind, Finding
from lora_lab.errors import NumericalError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lora_lab.domain.adapter import Adapter
    from lora_lab.domain.tensors import TensorRef
    from lora_lab.extension.contracts import AnalysisContext

SAVED: Final = (
    Column("tensor", "Tensor", ColumnKind.TEXT),
    Column("module", "Module", ColumnKind.TEXT),
    Column("role", "Role", ColumnKind.TEXT),
    Column("in", "In", ColumnKind.TEXT, formula="a, b or both"),
    Column("shape_a", "Shape A", ColumnKind.SHAPE),
    Column("shape_b", "Shape B", ColumnKind.SHAPE),
    Column("difference_norm", "‖A − B‖_F", formula="√Σ(a − b)²"),
    Column("relative_difference", "Relative", formula="‖A − B‖/max(‖A‖, ‖B‖), from 0 to 2", low=0.0, high=2.0),
)


def saved_differences(
    a: Adapter, b: Adapter, context: AnalysisContext
) -> tuple[tuple[dict[str, Any], ...], list[Finding]]:
    """Compare every tensor that is no factor of ΔW.

    Both tensors are held while they are compared.

    Returns
    -------
    a row for each that differs or is in one only, and a finding for each that could not be compared
    """
    ours, theirs = (dict(_beside(adapter, context)) for adapter in (a, b))
    rows, findings = [], []
    for key in sorted(ours.keys() | theirs.keys(), key=lambda key: (natural_key(key[0]), key[1:])):
        try:
            row = _compared(key, ours.get(key), theirs.get(key), context)
        except NumericalError as error:
            findings.append(Finding("not_finite", str(error), key[0]))
            continue
        if row is not None:
            rows.append(row)
    return tuple(rows), findings


def _beside(adapter: Adapter, context: AnalysisContext) -> Iterator[tuple[tuple[str, str, str], TensorRef]]:
    """Each tensor under its module, role and the last part of its name."""
    chosen = frozenset(select_modules([*adapter.modules, *(one.module for one in adapter.saved)], context.modules))
    for saved in adapter.saved:
        if saved.module in chosen:
            yield (saved.module, saved.role.value, _last(saved.tensor)), saved.tensor
    for delta in adapter.deltas:
        if delta.module in chosen:
            for role, ref in (("magnitude", delta.magnitude), ("lora_bias", delta.lora_bias)):
                if ref is not None:
                    yield (delta.module, role, _last(ref)), ref


def _last(ref: TensorRef) -> str:
    return ref.name.rpartition(".")[2]


def _compared(
    key: tuple[str, str, str], ours: TensorRef | None, theirs: TensorRef | None, context: AnalysisContext
) -> dict[str, Any] | None:
    """The row of one tensor; None when both hold the same numbers."""
    from lora_lab.linalg.comparing import equal_numbers, tensor_difference

    row: dict[str, Any] = {
        "tensor": next(ref.name for ref in (ours, theirs) if ref is not None),
        "module": key[0],
        "role": key[1],
        "in": "both" if ours and theirs else "a" if ours else "b",
        "shape_a": list(ours.shape) if ours else None,
        "shape_b": list(theirs.shape) if theirs else None,
        "difference_norm": None,
        "relative_difference": None,
    }
    if ours is None or theirs is None or ours.shape != theirs.shape:
        return row
    first, second = context.reader.tensor(ours), context.reader.tensor(theirs)
    if equal_numbers(first, second):
        return None
    difference = tensor_difference(first, second, name=key[0])
    return row | {"difference_norm": difference.norm, "relative_difference": difference.relative}
