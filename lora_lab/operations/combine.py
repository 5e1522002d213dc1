"""One adapter out of several, or a smaller one out of one, written as PEFT reads it, with a receipt."""

from __future__ import annotations

import hashlib
import json
import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lora_lab.domain.parameters import parse_parameters
from lora_lab.domain.progress import Unwatched
from lora_lab.errors import LoraLabError, OperationError, quoted
from lora_lab.operations.adapter_files import AdapterFiles, configuration_of, tensors_of
from lora_lab.operations.combine_options import CombineOptions, Whole
from lora_lab.operations.combine_report import report_of, with_receipt
from lora_lab.operations.combining import Combiner, joints_of, with_biases
from lora_lab.operations.execution import peak_memory_bytes
from lora_lab.operations.receipt import RECEIPT, receipt_bytes
from lora_lab.operations.running import require_apart
from lora_lab.operations.saved_modules import gather_saved
from lora_lab.storage.disk import Disk
from lora_lab.storage.staging import StagedFolder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from lora_lab.domain.adapter import Adapter
    from lora_lab.domain.progress import Observer
    from lora_lab.domain.report import InputRecord, Report
    from lora_lab.extension.contracts import MergeMethod, Reader


@dataclass(frozen=True)
class CombineTarget:
    """Where a combination is written.

    output : a folder that is not there, or is replaced with `overwrite`
    inputs : gives what was read, for the receipt; asked when everything else is done
    plugins : version of the distribution that brings the method, where it is none of the built-in ones
    is_dry : compute everything, and write nothing
    """

    output: Path
    overwrite: bool = False
    is_dry: bool = False
    disk: Disk = field(default_factory=Disk)
    inputs: Callable[[], Sequence[InputRecord]] = tuple
    plugins: Mapping[str, str] = field(default_factory=dict)


def combine(
    adapters: Sequence[Adapter],
    method: MergeMethod,
    target: CombineTarget,
    *,
    reader: Reader,
    options: CombineOptions | None = None,
    parameters: Mapping[str, Any] | None = None,
    operation: str = "combine",
    observer: Observer | None = None,
) -> Report:
    """Combine adapters, and write the result.

    Parameters
    ----------
    method : gives the factors of each module
    parameters : of the method, values or texts as a person types them
    operation : ``combine``, or ``resize`` of one adapter

    Returns
    -------
    the receipt, which also stands in the folder: rank and relative error of every module

    Raises
    ------
    AdapterError, CompatibilityError
        an adapter cannot be combined, or the adapters do not fit together; nothing has been written.
    NumericalError
        a factor is not finite, or exceeds the type of the output.
    OperationError
        no room, no permission, or the output exists.

    Notes
    -----
    Memory for the result and some modules of the inputs.
    """
    if not adapters:
        raise LoraLabError("There is nothing to combine, expected at least one adapter.")
    options = options or CombineOptions()
    values = parse_parameters(method.parameters, parameters or {})
    if os.path.lexists(target.output) and not target.overwrite:
        raise OperationError(
            f"{quoted(target.output)} exists already.", hint="Choose another name, or pass --overwrite."
        )
    if target.overwrite:
        require_apart(target.output, [stamp for adapter in adapters for stamp in adapter.files])
    started = time.perf_counter()
    joints = joints_of(adapters, options)
    saved = gather_saved(adapters, options, reader)
    observer = observer or Unwatched()
    combiner = Combiner(adapters, joints, method, options, values, reader, observer)
    modules = with_biases(list(combiner.run()))
    is_whole = len(modules) == len({module for adapter in adapters for module in adapter.modules})
    files = AdapterFiles(configuration_of(adapters, modules, saved, is_whole=is_whole), tensors_of(modules, saved))
    report = report_of(operation, adapters, method, joints, modules, saved, options)
    arguments = _arguments(operation, adapters, method, options, values)
    if target.is_dry:
        rows = [{"path": name, "size_bytes": size, "sha256": ""} for name, size in files.sizes.items()]
        return with_receipt(report, operation, arguments, rows, {}, (), target.plugins)
    read = sum(adapter.size_bytes for adapter in adapters)
    return _written(files, report, operation, arguments, target, read, started, observer)


def _written(
    files: AdapterFiles,
    report: Report,
    operation: str,
    arguments: Mapping[str, Any],
    target: CombineTarget,
    bytes_read: int,
    started: float,
    observer: Observer,
) -> Report:
    """Write everything and give the folder its name; the receipt."""
    identity = hashlib.sha256(json.dumps([operation, arguments, files.sizes], sort_keys=True).encode()).hexdigest()
    with StagedFolder(target.output, identity, disk=target.disk, overwrite=target.overwrite) as staged:
        files.write(staged, observer)
        finished = sorted(staged.finished.values())
        numbers = {
            "seconds": time.perf_counter() - started,
            "bytes_read": bytes_read,
            "bytes_written": sum(file.size_bytes for file in finished),
            "peak_memory_bytes": peak_memory_bytes(),
        }
        rows = [{"path": file.name, "size_bytes": file.size_bytes, "sha256": file.sha256} for file in finished]
        report = with_receipt(report, operation, arguments, rows, numbers, target.inputs(), target.plugins)
        content = receipt_bytes(report)
        with staged.file(RECEIPT, len(content)) as file:
            file.write(content)
        staged.commit()
    return report


def _arguments(
    operation: str,
    adapters: Sequence[Adapter],
    method: MergeMethod,
    options: CombineOptions,
    values: Mapping[str, Any],
) -> dict[str, Any]:
    """What a session is given to do it again."""
    how = {
        "rank": options.rank,
        "energy": options.energy,
        "error": options.error,
        "parameters": options.parameters,
        "dtype": options.dtype.value if options.dtype else None,
        "seed": options.seed,
        "modules": list(options.modules),
    }
    if operation == "resize":
        return {"adapter": adapters[0].locator, **how}
    return {
        "adapters": [adapter.locator for adapter in adapters],
        "method": method.id,
        "settings": {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()},
        "strengths": list(options.strengths_for(adapters)),
        **how,
        "average_saved_modules": options.whole is Whole.AVERAGE,
        "skip_saved_modules": options.whole is Whole.SKIP,
        "saved_modules_from": options.saved_modules_from,
    }
