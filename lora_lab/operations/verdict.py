"""What a verification says: a row for each tensor, findings, one diagnosis and a verdict."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final

from lora_lab.domain.report import Column, ColumnKind, Finding, Report, Scalars, Table
from lora_lab.errors import quoted
from lora_lab.linalg.verification import Diagnosis

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_lab.domain.base import Base
    from lora_lab.operations.arithmetic import Judged

# Diagnoses of a tensor that no adapter changes.
CHANGED_UNTOUCHED: Final = "changed_untouched"
MISSING_TENSOR: Final = "missing_tensor"
ADDED_TENSOR: Final = "added_tensor"
OTHER_SHAPE: Final = "other_shape"
OTHER_BASE: Final = "other_base"
_SHOWN: Final = 3

SUMMARY: Final = (
    Column("ok", "Verified", ColumnKind.VALUE, formula="true: proven; false: refuted; null: not established"),
    Column("established", "Established", ColumnKind.VALUE, formula="whether anything was proven or refuted"),
    Column("diagnosis", "Diagnosis", ColumnKind.TEXT),
    Column("hashes", "Hashes", ColumnKind.VALUE, formula="every file against the receipt; null without a receipt"),
    Column("arithmetic", "Arithmetic", ColumnKind.VALUE, formula="every tensor; null without base, or inconclusive"),
    Column("untouched", "Untouched tensors", ColumnKind.INTEGER, formula="with the base's own values"),
)
FILES: Final = (
    Column("path", "File", ColumnKind.TEXT),
    Column("ok", "Right", ColumnKind.VALUE),
    Column("expected", "Expected sha256", ColumnKind.TEXT, is_wide=True),
    Column("sha256", "sha256", ColumnKind.TEXT, is_wide=True),
)
MODULES: Final = (
    Column("module", "Module", ColumnKind.TEXT),
    Column("tensor", "Tensor", ColumnKind.TEXT, is_wide=True),
    Column("diagnosis", "Diagnosis", ColumnKind.TEXT),
    Column("strength", "Strength", formula="ŝ/ŝ of the ideal, ŝ = ⟨M−W, Δ⟩/⟨Δ, Δ⟩; 1: as claimed"),
    Column("strength_error", "± error", formula="one standard error"),
    Column("effective_strength", "Strength that arrived", formula="ŝ = ⟨M−W, Δ⟩/⟨Δ, Δ⟩"),
    Column(
        "worst_ulp",
        "Worst entry",
        unit="ulp",
        formula="|M − (W+Δ)| in ulp of max(|W|, |Δ|, |M|); null where none differs",
    ),
    Column("differing_fraction", "Differing", formula="share of values that are not round(W+Δ), bit for bit"),
    Column("detail", "Detail", ColumnKind.TEXT, is_wide=True),
)


def said(rows: Sequence[Mapping[str, Any]], *, is_ours: bool) -> bool | None:
    """Whether all tensors are sound; None where some cannot be told, or none can."""
    sound = {Diagnosis.RIGHT} if is_ours else {Diagnosis.RIGHT, Diagnosis.ROUNDED_ELSEWHERE}
    codes = {row["diagnosis"] for row in rows}
    if codes - sound - {Diagnosis.INCONCLUSIVE}:
        return False
    # Bits that are the ideal's say nothing where they are the base's too, and nothing against the rest.
    if any(row["diagnosis"] == Diagnosis.INCONCLUSIVE and row["differing_fraction"] != 0 for row in rows):
        return None
    return True if not rows or codes & sound else None


def judged_row(name: str, judged: Judged) -> dict[str, Any]:
    found = judged.found
    return {
        **plain_row(name, judged.diagnosis, judged.detail),
        "strength": judged.strength,
        "strength_error": judged.strength_error,
        "effective_strength": found.effective_strength,
        "worst_ulp": found.worst_ulp if found.differing and not found.not_finite else None,
        "differing_fraction": found.differing / found.elements if found.elements else None,
    }


def plain_row(name: str, diagnosis: str, detail: str) -> dict[str, Any]:
    numbers = ("strength", "strength_error", "effective_strength", "worst_ulp", "differing_fraction")
    row: dict[str, Any] = {"module": name.removesuffix(".weight"), "tensor": name, "diagnosis": str(diagnosis)}
    return {**row, **dict.fromkeys(numbers), "detail": detail}


_AGAIN: Final = "merge again"
_COPY: Final = "copy the file again, or merge again"
# What is so, of one and of many, and the next step.
_SENTENCES: Final[Mapping[str, tuple[str, str, str]]] = {
    Diagnosis.ROUNDED_ELSEWHERE: (
        "was rounded more than once on the way",
        "were rounded more than once on the way",
        "other tools do so, and lora-lab's own merges are not",
    ),
    Diagnosis.PARTLY_MERGED: ("has only a part of the update", "have only a part of the update", _AGAIN),
    Diagnosis.WRONG_STRENGTH: (
        "has the update at another strength",
        "have the update at another strength",
        "--strength says which one is expected, and alpha, rank and use_rslora decide what 1 is",
    ),
    Diagnosis.SIGN_FLIPPED: ("has the update subtracted", "have the update subtracted", "--strength -1 expects that"),
    Diagnosis.TRANSPOSED: ("has the transposed update", "have the transposed update", "fan_in_fan_out decides that"),
    Diagnosis.NOT_APPLIED: ("does not have the update", "do not have the update", _AGAIN),
    Diagnosis.OTHER_ADAPTER: (
        "was changed by something else than these adapters",
        "were changed by something else than these adapters",
        "look for another adapter or another base",
    ),
    Diagnosis.WRONG_VALUES: ("is right but for some values", "are right but for some values", _COPY),
    Diagnosis.NOT_FINITE: ("holds NaN or infinity", "hold NaN or infinity", _COPY),
    Diagnosis.INCONCLUSIVE: (
        "cannot be told from other merges: the update is too small for its type",
        "cannot be told from other merges: the update is too small for their type",
        "a merge with --dtype float32 can be proven",
    ),
    CHANGED_UNTOUCHED: (
        "is not the base's, and no adapter changes it",
        "are not the base's, and no adapter changes them",
        "look for another base, another adapter or a damaged file",
    ),
    MISSING_TENSOR: ("is missing", "are missing", _COPY),
    ADDED_TENSOR: (
        "is there, and neither the base nor an adapter has it",
        "are there, and neither the base nor an adapter has them",
        "look for another base or another adapter",
    ),
    OTHER_SHAPE: ("has another shape", "have another shape", "look for another base"),
}


def findings_of(rows: Sequence[Mapping[str, Any]], files: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """One for each kind of thing that is not as it should be."""
    findings = []
    bad = [row for row in files if not row["ok"]]
    if bad:
        who = "A file is" if len(bad) == 1 else f"{len(bad)} files are"
        told = listed([_file_told(row) for row in bad])
        findings.append(
            Finding(
                "other_hash", f"{who} not as the receipt says, of {len(files)}: {told}; copy again, or merge again."
            )
        )
    by_code: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["diagnosis"] != Diagnosis.RIGHT:
            by_code[row["diagnosis"]].append(row)
    for code, own in by_code.items():
        one, many, step = _SENTENCES[code]
        who = f"A tensor {one}" if len(own) == 1 else f"{len(own)} tensors {many}"
        findings.append(Finding(code, f"{who}: {listed([_told(row) for row in own])}; {step}.", own[0]["module"]))
    return findings


def listed(told: Sequence[str]) -> str:
    """The first few of them, and how many more there are."""
    more = f" and {len(told) - _SHOWN} more" if len(told) > _SHOWN else ""
    return ", ".join(told[:_SHOWN]) + more


def _told(row: Mapping[str, Any]) -> str:
    return quoted(row["tensor"]) + (f" ({row['detail']})" if row["detail"] else "")


def _file_told(row: Mapping[str, Any]) -> str:
    if row["expected"] is None:
        return f"{quoted(row['path'])} (not in the receipt)"
    if row["sha256"] is None:
        return f"{quoted(row['path'])} (missing)"
    return f"{quoted(row['path'])} (sha256 {row['sha256'][:12]}…, expected {row['expected'][:12]}…)"


def _diagnosis(rows: Sequence[Mapping[str, Any]], files: Sequence[Mapping[str, Any]]) -> str | None:
    """One code for the whole: what is wrong, or how right it is."""
    codes = {row["diagnosis"] for row in rows}
    sound = codes & {Diagnosis.RIGHT, Diagnosis.ROUNDED_ELSEWHERE}
    wrong = codes - sound - {Diagnosis.INCONCLUSIVE}
    if Diagnosis.NOT_APPLIED in wrong and sound:
        return Diagnosis.PARTLY_MERGED
    if wrong:
        return str(max(sorted(wrong), key=lambda code: sum(row["diagnosis"] == code for row in rows)))
    if any(not row["ok"] for row in files):
        return "other_hash"
    if sound:
        return Diagnosis.ROUNDED_ELSEWHERE if Diagnosis.ROUNDED_ELSEWHERE in sound else Diagnosis.RIGHT
    return Diagnosis.INCONCLUSIVE if codes else None


def report_of(
    merged: Base,
    files: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    hashes: bool | None,
    arithmetic: bool | None,
    has_base: bool,
    untouched: int | None,
    findings: Sequence[Finding],
) -> Report:
    asked: list[bool | None] = [hashes] if hashes is not None else []
    asked += [arithmetic] if has_base else []
    verdict: bool | None = None
    if any(answer is False for answer in asked):
        verdict = False
    elif asked and all(asked):
        verdict = True
    plain = Diagnosis.RIGHT.value if verdict else OTHER_BASE if arithmetic is False else Diagnosis.INCONCLUSIVE.value
    values = {
        "ok": verdict,
        "established": verdict is not None,
        "diagnosis": _diagnosis(rows, files) or plain,
        "hashes": hashes,
        "arithmetic": arithmetic,
        "untouched": untouched,
    }
    tables = []
    if files:
        tables.append(Table("files", "Files", FILES, tuple(files), key="path"))
    if has_base:
        tables.append(Table("modules", "Tensors", MODULES, tuple(rows), key="tensor"))
    return Report(
        command="verify",
        title=f"Verification of {merged.name}",
        tables=tuple(tables),
        scalars=(Scalars("", "Verdict", SUMMARY, values),),
        findings=tuple(findings),
        verdict=verdict,
    )
