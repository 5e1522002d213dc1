"""Whether a merged model is what it says: hashes against its receipt, and the arithmetic of every tensor."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lora_lab.domain.matching import is_tied
from lora_lab.domain.modules import natural_key
from lora_lab.domain.plan import Step, StepKind
from lora_lab.domain.progress import Unwatched, stop_if_cancelled
from lora_lab.domain.report import Finding
from lora_lab.errors import CompatibilityError, MissingFileError, quoted
from lora_lab.linalg.verification import Diagnosis
from lora_lab.operations.ancestry import require_behind, told_by
from lora_lab.operations.arithmetic import Comparer
from lora_lab.operations.held import is_of
from lora_lab.operations.layout import steps_of
from lora_lab.operations.options import MergeOptions
from lora_lab.operations.planning import Changes, changes_of
from lora_lab.operations.receipt import RECEIPT
from lora_lab.operations.receipt_file import ReceiptFile, find_receipt, merge_options, read_receipt
from lora_lab.operations.verdict import (
    ADDED_TENSOR,
    CHANGED_UNTOUCHED,
    MISSING_TENSOR,
    OTHER_BASE,
    OTHER_SHAPE,
    findings_of,
    judged_row,
    listed,
    plain_row,
    report_of,
    said,
)
from lora_lab.storage.files import inside, sha256_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from lora_lab.domain.adapter import Adapter
    from lora_lab.domain.base import Base
    from lora_lab.domain.progress import Observer
    from lora_lab.domain.report import Report
    from lora_lab.domain.tensors import TensorRef
    from lora_lab.extension.contracts import Reader

_OUTPUT_LAYERS: Final = ("lm_head", "embed_out", "output", "decoder")
_SAMPLE: Final = 16  # names by which a prefix is found


def verify(
    merged: Base,
    *,
    base: Base | None = None,
    adapters: Sequence[Adapter] = (),
    strengths: Sequence[float] = (),
    options: MergeOptions | None = None,
    missing: Sequence[Finding] = (),
    reader: Reader,
    observer: Observer | None = None,
) -> Report:
    """Prove that `merged` is W + Σ wᵢ(W′ᵢ − W), and what its receipt says; or say what it is instead.

    Parameters
    ----------
    base : with it the arithmetic is checked; without adapters the model must then be the base
    strengths : one for each adapter; none means what the receipt says, or 1 each
    options : how the merge was made; None means as the receipt says where it is of these adapters
    missing : adapters that the receipt names and nobody has; the base is then held against what the receipt says of it

    Returns
    -------
    ``verdict`` True, False, or None where nothing was established, which the scalar ``established`` tells apart

    Raises
    ------
    CompatibilityError
        adapters without a base, or they do not fit it.
    FileFormatError
        the receipt cannot be read, or a file changed meanwhile.

    Notes
    -----
    Time of reading and hashing the model, and of reading both models and forming Δ by blocks; memory for some blocks.
    """
    observer = observer or Unwatched()
    if adapters and base is None:
        raise CompatibilityError(
            "There are adapters and no base to add them to, expected both or neither.", hint="Give it with --base."
        )
    place = find_receipt(merged.path)
    receipt = None if place is None else read_receipt(place)
    findings: list[Finding] = []
    files = [] if receipt is None else _files(receipt, merged, findings, observer)
    hashes = all(row["ok"] for row in files) if receipt is not None else None
    rows: list[dict[str, Any]] = []
    untouched = None
    arithmetic: bool | None = None
    if base is not None and missing:
        untouched, arithmetic = _without_adapters(merged, base, observer, findings)
        findings += missing
    elif base is not None:
        chosen, is_ours = _options(receipt, adapters, strengths, options, findings)
        rows, untouched = _compare(merged, base, adapters, chosen, reader, observer, findings)
        arithmetic = said(rows, is_ours=is_ours)
    findings += findings_of(rows, files)
    if receipt is None and base is None:
        told = f"{quoted(merged.name)} has no receipt, and there is no base to compare it with"
        findings.append(Finding("nothing_to_compare", f"{told}; give --base and --adapter."))
    return report_of(merged, files, rows, hashes, arithmetic, base is not None, untouched, findings)


def _without_adapters(
    merged: Base, base: Base, observer: Observer, findings: list[Finding]
) -> tuple[int | None, bool | None]:
    """How many tensors are the base's, as they should be; False where the receipt says that the base is another."""
    told = told_by(merged)
    try:
        findings += require_behind(base, merged, told, (), observer)
    except CompatibilityError as error:
        findings.append(Finding(OTHER_BASE, f"{error.message} {error.hint}"))
        return None, False
    return sum(told is None or name not in told.touched for name in base.tensors), None


def _files(receipt: ReceiptFile, merged: Base, findings: list[Finding], observer: Observer) -> list[dict[str, Any]]:
    folder = Path(receipt.path).parent
    rows = []
    for output in receipt.outputs:
        stop_if_cancelled(observer)
        path = inside(folder, output.path)
        try:
            found = sha256_of(path)
        except MissingFileError:
            found = None
        rows.append({"path": output.path, "ok": found == output.sha256, "expected": output.sha256, "sha256": found})
    known = {output.path for output in receipt.outputs} | {RECEIPT}
    for stamp in merged.shards:
        shard = Path(stamp.path)
        name = shard.relative_to(folder).as_posix() if shard.is_relative_to(folder) else shard.name
        if name not in known:
            rows.append({"path": name, "ok": False, "expected": None, "sha256": sha256_of(stamp.path)})
    known |= {str(row["path"]) for row in rows}
    extra = sorted(_files_below(folder) - known)
    if extra:
        who = "A file is" if len(extra) == 1 else f"{len(extra)} files are"
        told = listed([quoted(name) for name in extra])
        findings.append(Finding("not_in_receipt", f"{who} beside the model that its receipt does not list: {told}."))
    return rows


def _files_below(folder: Path) -> set[str]:
    """Every file in `folder` and the folders in it, by path from there; links to folders are not followed."""
    return {Path(place, name).relative_to(folder).as_posix() for place, _, names in os.walk(folder) for name in names}


def _options(
    receipt: ReceiptFile | None,
    adapters: Sequence[Adapter],
    strengths: Sequence[float],
    options: MergeOptions | None,
    findings: list[Finding],
) -> tuple[MergeOptions, bool]:
    """How the merge was made, and whether that is known from the receipt of a merge of these very adapters."""
    from_receipt: MergeOptions | None = None
    if receipt is not None and receipt.operation == "merge" and adapters:
        if _is_of(receipt, adapters):
            from_receipt = merge_options(receipt)
        else:
            findings.append(
                Finding(
                    "other_inputs",
                    "The receipt is of other adapters than these, or of these in another order or state; how they are "
                    "compared is as the options say.",
                )
            )
    if options is not None:
        return replace(options, strengths=tuple(strengths) or options.strengths), False
    if from_receipt is None:
        return MergeOptions(strengths=tuple(strengths)), False
    return replace(from_receipt, strengths=tuple(strengths) or from_receipt.strengths), True


def _is_of(receipt: ReceiptFile, adapters: Sequence[Adapter]) -> bool:
    """Whether the receipt's first inputs are the files of `adapters`, in this order."""
    if len(receipt.inputs) < len(adapters) or len(receipt.arguments.get("adapters") or ()) != len(adapters):
        return False
    return all(is_of(entry, adapter) for entry, adapter in zip(receipt.inputs, adapters, strict=False))


def _compare(
    merged: Base,
    base: Base,
    adapters: Sequence[Adapter],
    options: MergeOptions,
    reader: Reader,
    observer: Observer,
    findings: list[Finding],
) -> tuple[list[dict[str, Any]], int]:
    """A row for each changed tensor and each that is wrong; how many untouched ones are the base's."""
    changes = changes_of(adapters, base, options) if adapters else Changes()
    findings += changes.findings
    steps = steps_of(changes, base, None)
    places, extra = _places(steps, merged, base)
    rows = []
    untouched = 0
    total = sum(ref.size_bytes for ref in places.values() if ref is not None)
    with Comparer(adapters, reader, options, observer, total) as comparer:
        for name in sorted(steps, key=natural_key):
            row = _row(steps[name], places[name], comparer, is_tied_copy=_may_be_absent(steps[name], base))
            if row is None:
                untouched += 1
                continue
            rows.append(row)
            observer.rows("modules", [row])
        for ref in extra:
            twin = _twin(ref, places.values()) if is_tied(base) or is_tied(merged) else None
            if twin is None or comparer.unlike(_copied(twin), ref):
                rows.append(plain_row(ref.name, ADDED_TENSOR, ""))
    return rows, untouched


def _places(steps: Mapping[str, Step], merged: Base, base: Base) -> tuple[dict[str, TensorRef | None], list[TensorRef]]:
    """Where each tensor is in the merged model, under its name or one other prefix for all; what is left over."""
    best = ("", "")
    count = sum(name in merged.tensors for name in steps)
    if count < len(steps) / 2:
        some = sorted(steps, key=len, reverse=True)[:_SAMPLE]  # long names are the ones of layers
        prefixes = {(name[: -len(own)], "") for name in merged.tensors for own in some if name.endswith(f".{own}")}
        prefixes |= {("", own[: -len(name)]) for name in merged.tensors for own in some if own.endswith(f".{name}")}
        for prefix in sorted(prefixes):
            found = sum(_moved(name, prefix) in merged.tensors for name in steps)
            best, count = (prefix, found) if found > count else (best, count)
    if count == 0:
        raise CompatibilityError(
            f"{quoted(merged.name)} has no tensor of {quoted(base.name)}, expected a model made from it.",
            hint="This is another model.",
        )
    places: dict[str, TensorRef | None] = {}
    for name in steps:
        places[name] = merged.tensors.get(_moved(name, best)) or merged.tensors.get(name)
    taken = {ref.name for ref in places.values() if ref is not None}
    return places, [ref for name, ref in merged.tensors.items() if name not in taken]


def _moved(name: str, prefix: tuple[str, str]) -> str:
    return prefix[0] + name.removeprefix(prefix[1])


def _row(step: Step, ref: TensorRef | None, comparer: Comparer, *, is_tied_copy: bool) -> dict[str, Any] | None:
    """What is to be said of one tensor; None where it is the base's, as it should be."""
    if ref is None:
        return None if is_tied_copy else plain_row(step.name, MISSING_TENSOR, "")
    if ref.shape != step.shape:
        return plain_row(step.name, OTHER_SHAPE, f"it is {list(ref.shape)}, expected {list(step.shape)}")
    if step.kind is StepKind.UPDATE:
        return judged_row(step.name, comparer.judge(step, ref))
    differing = comparer.unlike(step, ref)
    if step.kind is StepKind.ADD:
        detail = f"of the adapter's own {differing} bytes or values differ" if differing else "the adapter's own"
        return plain_row(step.name, Diagnosis.WRONG_VALUES if differing else Diagnosis.RIGHT, detail)
    if not differing:
        return None
    what = "bytes" if ref.dtype is step.dtype else "values"
    return plain_row(step.name, CHANGED_UNTOUCHED, f"differing {what}: {differing}")


def _may_be_absent(step: Step, base: Base) -> bool:
    """Whether the tensor is a copy of one that the base says it shares, which savers leave out."""
    module = step.name.rpartition(".")[0].rpartition(".")[2]
    return step.kind is StepKind.COPY and is_tied(base) and module in _OUTPUT_LAYERS


def _twin(ref: TensorRef, others: Iterable[TensorRef | None]) -> TensorRef | None:
    module = ref.name.rpartition(".")[0].rpartition(".")[2]
    fitting = [other for other in others if other is not None and other.shape == ref.shape]
    return fitting[0] if module in _OUTPUT_LAYERS and len(fitting) == 1 else None


def _copied(ref: TensorRef) -> Step:
    return Step(ref.name, StepKind.COPY, ref.dtype, ref.shape, ref)
