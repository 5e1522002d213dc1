"""The proof of what was done: the same document that ``--json`` prints, in a file beside the output."""

from __future__ import annotations

import json
import platform
from typing import TYPE_CHECKING, Any, Final

from lora_lab.domain.report import Column, ColumnKind, Finding, Report, Scalars, Table
from lora_lab.errors import quoted
from lora_lab.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from lora_lab.domain.plan import Plan, Step
    from lora_lab.linalg.storing import Fidelity
    from lora_lab.storage.staging import Finished

RECEIPT: Final = "lora_lab_receipt.json"
# Below this cosine a person gets something else than the adapter they merged.
_POOR_COSINE: Final = 0.95
_SHOWN: Final = 3

SUMMARY: Final = (
    Column("operation", "Operation", ColumnKind.TEXT),
    Column("arguments", "Arguments", ColumnKind.VALUE, is_wide=True),
    Column("seconds", "Seconds", unit="s"),
    Column("bytes_read", "Read", ColumnKind.BYTES, unit="bytes"),
    Column("bytes_written", "Written", ColumnKind.BYTES, unit="bytes"),
    Column("peak_memory_bytes", "Peak memory", ColumnKind.BYTES, unit="bytes", formula="largest resident set"),
    Column("versions", "Versions", ColumnKind.VALUE, is_wide=True),
)
OUTPUTS: Final = (
    Column("path", "File", ColumnKind.TEXT),
    Column("size_bytes", "Size", ColumnKind.BYTES, unit="bytes"),
    Column("sha256", "sha256", ColumnKind.TEXT, is_wide=True),
)
MODULES: Final = (
    Column("module", "Module", ColumnKind.TEXT),
    Column("tensor", "Tensor", ColumnKind.TEXT, is_wide=True),
    Column("changed_fraction", "Changed", formula="share of the elements whose value changed"),
    Column("intended_norm", "‖Δ‖_F", formula="Δ = Σ wᵢ(W′ᵢ − W)"),
    Column("realised_norm", "‖W′−W‖_F", formula="W′ as it is stored"),
    Column("realised_cosine", "Cosine", formula="⟨W′−W, Δ⟩/(‖W′−W‖·‖Δ‖)"),
    Column("effective_strength", "Strength that arrives", formula="⟨W′−W, Δ⟩/‖Δ‖²"),
    Column("reason", "Why not", ColumnKind.TEXT, is_wide=True, formula="why the figures are undefined"),
    Column("base_sha256", "sha256 in the base", ColumnKind.TEXT, is_wide=True),
)
ADDED: Final = (
    Column("tensor", "Tensor", ColumnKind.TEXT),
    Column("shape", "Shape", ColumnKind.SHAPE),
    Column("source", "From", ColumnKind.TEXT),
)


def module_rows(plan: Plan, fidelity: Mapping[str, Fidelity], hashes: Mapping[str, str]) -> list[dict[str, Any]]:
    """One row for each tensor that was summed."""
    rows = []
    for step in _updated(plan):
        found = fidelity.get(step.name)
        if found is None:
            continue
        rows.append(
            {
                "module": _module(step),
                "tensor": step.name,
                "changed_fraction": found.changed_fraction,
                "intended_norm": found.intended_norm,
                "realised_norm": found.realised_norm,
                "realised_cosine": found.realised_cosine,
                "effective_strength": found.effective_strength,
                "reason": _reason(found),
                "base_sha256": hashes.get(step.name),
            }
        )
    return rows


def _reason(found: Fidelity) -> str | None:
    """Why there are no figures of a tensor."""
    if found.is_defined:
        return None
    if found.not_finite:
        return f"{found.not_finite} of {found.elements} values of W′ are NaN or infinite"
    return "the sums exceed the range of float32"


def _updated(plan: Plan) -> Iterable[Step]:
    from lora_lab.domain.modules import natural_key
    from lora_lab.domain.plan import StepKind

    steps = [step for file in plan.files for step in file.steps if step.kind is StepKind.UPDATE]
    return sorted(steps, key=lambda step: natural_key(step.name))


def _module(step: Step) -> str:
    """Path of the module that the tensor belongs to."""
    return step.name.removesuffix(".weight")


def added_rows(plan: Plan, names: Sequence[str]) -> list[dict[str, Any]]:
    """One row for each tensor that the base has none for."""
    return [
        {"tensor": step.name, "shape": list(step.shape), "source": names[step.parts[0].adapter] if step.parts else ""}
        for file in plan.files
        for step in file.steps
        if step.source is None or step.name != step.source.name
    ]


def report_of(
    plan: Plan,
    names: Sequence[str],
    *,
    fidelity: Mapping[str, Fidelity],
    base_sha256: Mapping[str, str],
    outputs: Iterable[Finished],
    figures: Mapping[str, Any],
) -> Report:
    """Everything about one run.

    Parameters
    ----------
    names : of the adapters
    base_sha256 : of the bytes that each changed tensor had
    figures : seconds, bytes_read, bytes_written, peak_memory_bytes; absent in a plan that was not carried out
    """
    rows = module_rows(plan, fidelity, base_sha256)
    added = added_rows(plan, names)
    files = [{"path": file.name, "size_bytes": file.size_bytes, "sha256": file.sha256} for file in outputs]
    tables = [
        Table("outputs", "Files", OUTPUTS, tuple(files), key="path"),
        Table("modules", "Modules", MODULES, tuple(rows)),
    ]
    if added:
        tables.append(Table("added", "Added", ADDED, tuple(added), key="tensor"))
    values = {
        "operation": plan.operation,
        "arguments": dict(plan.arguments),
        **{name: figures.get(name) for name in ("seconds", "bytes_read", "bytes_written", "peak_memory_bytes")},
        "versions": versions(),
    }
    return Report(
        command=plan.operation,
        title=f"{plan.operation.capitalize()} of {', '.join(names)}",
        tables=tuple(tables),
        scalars=(Scalars("", "Receipt", SUMMARY, values),),
        findings=(*plan.findings, *_fidelity_findings(rows)),
    )


def versions() -> dict[str, str]:
    """What decided the bits."""
    import torch

    return {"lora_lab": __version__, "torch": torch.__version__, "python": platform.python_version()}


def receipt_bytes(report: Report, **more: Any) -> bytes:
    """The receipt as a file."""
    document = {**report.to_json(), **more}
    return (json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _fidelity_findings(rows: Sequence[Mapping[str, Any]]) -> Iterable[Finding]:
    for row in rows:
        if row["reason"] is not None:
            message = f"Figures of {quoted(row['tensor'])} are undefined: {row['reason']}."
            yield Finding("undefined_figures", message, row["module"])
    poor = [row for row in rows if row["realised_cosine"] is None or row["realised_cosine"] < _POOR_COSINE]
    poor = [row for row in poor if row["intended_norm"]]
    if not poor:
        return
    worst = min(poor, key=lambda row: row["effective_strength"] or 0.0)
    yield Finding(
        "poor_fidelity",
        f"Rounding swallows a part of the update in {len(poor)} of {len(rows)} tensors: in {quoted(worst['tensor'])} "
        f"{worst['effective_strength'] or 0.0:.2f} of the strength arrives, at a cosine of "
        f"{worst['realised_cosine'] or 0.0:.2f}; --dtype float32 keeps it, --rounding stochastic keeps its mean.",
        worst["module"],
    )
