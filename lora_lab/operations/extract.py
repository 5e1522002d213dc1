"""A LoRA from a base and its full fine-tune, written as PEFT reads it, with a receipt."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from lora_lab.analyses.summaries import counted, summarised
from lora_lab.domain.adapter import DeltaKind
from lora_lab.domain.matching import is_tied
from lora_lab.domain.modules import natural_key
from lora_lab.domain.progress import Unwatched
from lora_lab.domain.report import Column, ColumnKind, Finding, Report, Scalars, Table
from lora_lab.errors import OperationError, quoted
from lora_lab.operations.adapter_files import AdapterFiles, rank_patterns
from lora_lab.operations.execution import peak_memory_bytes
from lora_lab.operations.extraction import ExtractOptions, extracted
from lora_lab.operations.parameter_files import FUSED, nested, packed_experts
from lora_lab.operations.receipt import OUTPUTS, RECEIPT, SUMMARY, receipt_bytes, versions
from lora_lab.operations.running import require_apart
from lora_lab.storage.disk import Disk
from lora_lab.storage.staging import Finished, StagedFolder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    import torch

    from lora_lab.domain.base import Base
    from lora_lab.domain.progress import Observer
    from lora_lab.domain.report import InputRecord
    from lora_lab.extension.contracts import Reader
    from lora_lab.operations.extraction import Extracted, Extraction

_PREFIX: Final = "base_model.model."
_CAUSAL: Final = "CausalLM"
MODULES: Final = (
    Column("module", "Module", ColumnKind.TEXT),
    Column("kind", "Kind", ColumnKind.TEXT),
    Column("shape", "Shape", ColumnKind.SHAPE),
    Column("rank", "r", ColumnKind.INTEGER),
    Column("update_norm", "‖W_ft−W₀‖_F"),
    Column("relative_error", "Relative error", formula="‖(W_ft − W₀) − ΔW‖_F/‖W_ft − W₀‖_F, ΔW as it is written"),
    Column(
        "excess_bound",
        "Above the optimum",
        formula="the error before rounding is at most (1 + this) times the least of this rank",
        is_wide=True,
    ),
    Column("parameters", "Parameters", ColumnKind.INTEGER),
)
TOTALS: Final = (
    Column("modules", "Modules", ColumnKind.INTEGER),
    Column("parameters", "Parameters", ColumnKind.INTEGER),
    Column("update_norm", "‖W_ft−W₀‖_F"),
    Column("relative_error", "Relative error", formula="√Σ‖·‖² of what is left over √Σ‖W_ft − W₀‖² of these modules"),
)
NAMES: Final = (
    Column("saved_modules", "Saved whole", ColumnKind.LIST),
    Column("unchanged", "Unchanged", ColumnKind.LIST, is_wide=True),
    Column("resized", "Resized", ColumnKind.LIST),
    Column("left_out", "Left out", ColumnKind.LIST),
    Column("only_in_base", "Only in the base", ColumnKind.LIST, is_wide=True),
)


def extract(
    base: Base,
    finetuned: Base,
    output: Path,
    *,
    reader: Reader,
    options: ExtractOptions | None = None,
    inputs: Callable[[], Sequence[InputRecord]] = tuple,
    overwrite: bool = False,
    dry_run: bool = False,
    disk: Disk | None = None,
    observer: Observer | None = None,
) -> Report:
    """Write the LoRA that comes nearest to a fine-tune.

    Parameters
    ----------
    output : a folder that is not there, or is replaced with `overwrite`
    inputs : gives what was read, for the receipt; asked when everything else is done
    dry_run : compute everything, and write nothing; the sizes of the files are told all the same

    Returns
    -------
    the receipt, which also stands in the folder: rank and relative error of every module, what was saved whole, what
    was not taken

    Raises
    ------
    CompatibilityError
        the two do not fit, or nothing changed; nothing has been written.
    NumericalError
        a tensor holds NaN or infinity.
    OperationError
        no room, no permission, or the output exists.
    """
    options = options or ExtractOptions()
    if os.path.lexists(output) and not overwrite:
        raise OperationError(f"{quoted(output)} exists already.", hint="Choose another name, or pass --overwrite.")
    require_apart(output, (base, finetuned), overwrite=overwrite)
    started = time.perf_counter()
    found = extracted(base, finetuned, reader=reader, options=options, observer=observer)
    tensors = _tensors(found)
    files = AdapterFiles(_configuration(found, base, finetuned), tensors)
    report = _report(found, base, finetuned, options, sum(t.numel() for name, t in tensors.items() if ".lora_" in name))
    if dry_run:
        expected = [Finished(name, "", size) for name, size in files.sizes.items()]
        return _with_receipt(report, _arguments(base, finetuned, options), expected, {}, inputs())

    def told(files: Sequence[Finished]) -> Report:
        numbers = {
            "seconds": time.perf_counter() - started,
            "bytes_read": found.bytes_read,
            "bytes_written": sum(file.size_bytes for file in files),
            "peak_memory_bytes": peak_memory_bytes(),
        }
        return _with_receipt(report, _arguments(base, finetuned, options), files, numbers, inputs())

    return _write(output, files, told, observer or Unwatched(), overwrite=overwrite, disk=disk or Disk())


def _write(
    output: Path,
    files: AdapterFiles,
    told: Callable[[Sequence[Finished]], Report],
    observer: Observer,
    *,
    overwrite: bool,
    disk: Disk,
) -> Report:
    """Write the files and the receipt that `told` makes of these, whole or not at all."""
    identity = hashlib.sha256(json.dumps(["extract", str(output), files.sizes]).encode()).hexdigest()
    with StagedFolder(output, identity, disk=disk, overwrite=overwrite) as staged:
        if staged.is_complete:
            raise OperationError(
                f"{quoted(output)} was completed by the run that was interrupted.", hint="There is nothing left to do."
            )
        files.write(staged, observer)
        report = told(sorted(staged.finished.values()))
        content = receipt_bytes(report)
        with staged.file(RECEIPT, len(content)) as file:
            file.write(content)
        staged.commit()
    return report


def _configuration(found: Extraction, base: Base, finetuned: Base) -> dict[str, Any]:
    """What PEFT reads: alpha is the rank everywhere, so that the scaling is 1."""
    ranks = {module.piece.parameter: module.rank for module in found.modules}
    common, others = rank_patterns(ranks)
    parameters = {module.piece.parameter for module in found.modules if module.piece.kind is DeltaKind.EXPERTS}
    classes = finetuned.configuration.get("architectures") or [""]
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if str(classes[0]).endswith(_CAUSAL) else None,
        "base_model_name_or_path": base.locator,
        "r": common,
        "lora_alpha": common,
        "rank_pattern": others,
        "alpha_pattern": dict(others),
        "target_modules": [path for path in ranks if path not in parameters],
        **({"target_parameters": sorted(parameters, key=natural_key)} if parameters else {}),
        "modules_to_save": sorted(found.saved_modules, key=natural_key) or None,
        "bias": "lora_only" if found.has_biases else "none",
        "fan_in_fan_out": found.division.is_fan_in_fan_out,
        "lora_dropout": 0.0,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }


def _tensors(found: Extraction) -> dict[str, torch.Tensor]:
    tensors = dict(found.saved)
    experts: dict[str, dict[int, tuple[torch.Tensor, torch.Tensor]]] = {}
    for module in found.modules:
        if module.piece.kind is DeltaKind.EXPERTS:
            own = experts.setdefault(module.piece.parameter, {})
            own[module.piece.matrix.expert or 0] = (module.lora_A, module.lora_B)
            continue
        path = f"{_PREFIX}{module.piece.module}"
        lora_A, lora_B = module.lora_A, module.lora_B
        if module.piece.kind is DeltaKind.EMBEDDING:
            tensors[f"{path}.lora_embedding_A"], tensors[f"{path}.lora_embedding_B"] = lora_A, lora_B
            continue
        if module.piece.kind is DeltaKind.CONV:
            kernel = module.piece.matrix.after.shape
            lora_A = lora_A.reshape(module.rank, *kernel[1:])
            lora_B = lora_B.reshape(*lora_B.shape, *(1 for _ in kernel[2:]))
        tensors[f"{path}.lora_A.weight"], tensors[f"{path}.lora_B.weight"] = lora_A, lora_B
    counts = {module.piece.parameter: module.piece.matrix.after.shape[0] for module in found.modules}
    for path, level in _levels(experts).items():
        packed = packed_experts(experts[path], counts[path])
        tensors[f"{_PREFIX}{level}.lora_A.weight"], tensors[f"{_PREFIX}{level}.lora_B.weight"] = packed
    return tensors


def _levels(parameters: Iterable[str]) -> dict[str, str]:
    """Where the parameters of experts stand, by their paths."""
    leaves: dict[str, list[str]] = {}
    for path in parameters:
        root, _, leaf = path.rpartition(".")
        leaves.setdefault(root, []).append(leaf)
    found: dict[str, str] = {}
    for root, names in leaves.items():
        found |= nested(root, sorted(names, key=FUSED.index) if len(names) > 1 else names)
    return found


def _arguments(base: Base, finetuned: Base, options: ExtractOptions) -> dict[str, Any]:
    return {
        "base": base.locator,
        "finetuned": finetuned.locator,
        "rank": options.rank,
        "energy": options.energy,
        "save_others": options.saves_others,
        "dtype": options.dtype.value,
        "seed": options.seed,
        "modules": list(options.modules),
    }


def _row(module: Extracted) -> dict[str, Any]:
    return {
        "module": module.piece.module,
        "kind": module.piece.kind.value,
        "shape": list(module.piece.matrix.after.shape[module.piece.kind is DeltaKind.EXPERTS :]),
        "rank": module.rank,
        "update_norm": module.update_norm,
        "relative_error": module.error / module.update_norm,
        "excess_bound": module.bound if math.isfinite(module.bound) else None,
        "parameters": module.lora_A.numel() + module.lora_B.numel(),
    }


def _report(found: Extraction, base: Base, finetuned: Base, options: ExtractOptions, parameters: int) -> Report:
    rows = [_row(module) for module in found.modules]
    norm = math.hypot(*(module.update_norm for module in found.modules))
    totals = {
        "modules": len(rows),
        "parameters": parameters,
        "update_norm": norm,
        "relative_error": math.hypot(*(module.error for module in found.modules)) / norm,
    }
    division = found.division
    names = {
        "saved_modules": sorted(found.saved_modules, key=natural_key),
        "unchanged": sorted(found.unchanged, key=natural_key),
        "resized": division.resized,
        "left_out": sorted([*division.left, *found.not_saved], key=natural_key),
        "only_in_base": division.only_in_base,
    }
    return Report(
        command="extract",
        title=f"LoRA of {finetuned.name} − {base.name}",
        tables=(Table("modules", "Modules", MODULES, tuple(rows)),),
        scalars=(Scalars("totals", "Totals", TOTALS, totals), Scalars("tensors", "Other tensors", NAMES, names)),
        findings=tuple(_findings(found, base, options)),
    )


def _findings(found: Extraction, base: Base, options: ExtractOptions) -> Iterator[Finding]:
    if found.not_saved:
        yield Finding(
            "others_left_out",
            f"No factors stand for {counted(found.not_saved, 'changed tensor', 'changed tensors')} or modules, left "
            f"out: {summarised(map(quoted, found.not_saved))}; --save-others takes them along whole.",
        )
    if found.division.left:
        shown = summarised(f"{quoted(name)} ({why})" for name, why in found.division.left.items())
        yield Finding("not_extractable", f"Neither factors nor modules_to_save can carry: {shown}.")
    if found.division.resized:
        is_along = options.saves_others
        what = "has to be resized before the adapter is loaded" if is_along else "keeps its size, without the new rows"
        yield Finding("vocabulary_resized", f"The base {what}: {summarised(found.division.resized)}.")
    if found.capped:
        yield Finding(
            "energy_not_reached",
            f"{options.energy:g} of the energy takes "
            f"{'more than the rank that was allowed' if options.rank else 'more parameters than the matrix has'} in "
            f"{summarised(map(quoted, found.capped))}; the best of the largest rank was written.",
        )
    embeddings = [module.piece.module for module in found.modules if module.piece.kind is DeltaKind.EMBEDDING]
    if embeddings and is_tied(base):
        yield Finding(
            "tied_embedding",
            f"The base ties its output layer to {quoted(embeddings[0])}: merged, the update reaches both as in the "
            "fine-tune; unmerged, it changes the embedding alone.",
            embeddings[0],
        )


def _with_receipt(
    report: Report,
    arguments: Mapping[str, Any],
    files: Sequence[Finished],
    numbers: Mapping[str, Any],
    inputs: Sequence[InputRecord],
) -> Report:
    rows = [{"path": file.name, "size_bytes": file.size_bytes, "sha256": file.sha256} for file in files]
    keys = ("seconds", "bytes_read", "bytes_written", "peak_memory_bytes")
    measured = {key: numbers.get(key) for key in keys}
    values = {"operation": "extract", "arguments": dict(arguments), **measured, "versions": versions()}
    return replace(
        report,
        inputs=tuple(inputs),
        tables=(Table("outputs", "Files", OUTPUTS, tuple(rows), key="path"), *report.tables),
        scalars=(Scalars("", "Receipt", SUMMARY, values), *report.scalars),
    )
