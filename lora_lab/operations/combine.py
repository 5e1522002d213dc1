"""One adapter out of several, or a smaller one out of one, written as PEFT reads it, with a receipt."""

from __future__ import annotations

import hashlib
import json
import os
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from lora_lab.domain.parameters import parse_parameters
from lora_lab.domain.progress import Unwatched
from lora_lab.errors import LoraLabError, OperationError, quoted
from lora_lab.operations.adapter_files import AdapterFiles, configuration_of, tensors_of
from lora_lab.operations.behind import Behind
from lora_lab.operations.combine_options import CombineOptions, Whole
from lora_lab.operations.combine_report import report_of, with_receipt
from lora_lab.operations.combining import Combiner, with_biases
from lora_lab.operations.execution import peak_memory_bytes
from lora_lab.operations.joining import joints_of
from lora_lab.operations.parameter_files import with_equal_ranks
from lora_lab.operations.receipt import RECEIPT, receipt_bytes
from lora_lab.operations.running import require_apart
from lora_lab.operations.saved_modules import gather_saved
from lora_lab.operations.supply import Supply
from lora_lab.storage.disk import Disk
from lora_lab.storage.staging import StagedFolder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from lora_lab.domain.adapter import Adapter
    from lora_lab.domain.base import Base
    from lora_lab.domain.progress import Observer
    from lora_lab.domain.report import Finding, InputRecord, Report
    from lora_lab.extension.contracts import MergeMethod, Reader
    from lora_lab.operations.combining import Joined
    from lora_lab.operations.joining import Joint
    from lora_lab.operations.saved_modules import Saved


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

    def require_free(self, adapters: Sequence[Adapter], base: Base | None) -> None:
        """Raise OperationError when something is there that may not be replaced, or that is read, or around it."""
        if os.path.lexists(self.output) and not self.overwrite:
            raise OperationError(
                f"{quoted(self.output)} exists already.", hint="Choose another name, or pass --overwrite."
            )
        behind = () if base is None else (base,)
        require_apart(self.output, (*adapters, *behind), overwrite=self.overwrite)


@dataclass(frozen=True)
class Recipe:
    """What is done with which adapters.

    values : of every parameter of the method
    base : behind adapters whose change is known with it alone
    operation : ``combine``, or ``resize`` of one adapter
    """

    adapters: Sequence[Adapter]
    method: MergeMethod
    options: CombineOptions
    values: Mapping[str, Any]
    operation: str = "combine"
    base: Base | None = None

    def made(self, joints: Sequence[Joint], supply: Supply, saved: Saved, observer: Observer) -> Made:
        """Compute everything; raises as :func:`combine`."""
        adapters, options = self.adapters, self.options
        combiner = Combiner(adapters, joints, self.method, options, self.values, supply, observer)
        modules = with_equal_ranks(with_biases(list(combiner.run())))
        written = [module for module in modules if module.rank]
        is_whole = len(written) == len({module for adapter in adapters for module in adapter.modules})
        configuration = configuration_of(adapters, written, saved, is_whole=is_whole)
        return Made(
            AdapterFiles(configuration, tensors_of(adapters, written, saved)),
            report_of(self.operation, adapters, self.method, modules, saved, options),
            self.operation,
            self.arguments,
            modules,
            sum(adapter.size_bytes for adapter in adapters),
        )

    @property
    def arguments(self) -> dict[str, Any]:
        """What a session is given to do it again."""
        options = self.options
        how = {
            "rank": options.rank,
            "energy": options.energy,
            "error": options.error,
            "parameters": options.parameters,
            "dtype": options.dtype.value if options.dtype else None,
            "seed": options.seed,
            "modules": list(options.modules),
            **options.words,
            **({} if self.base is None else {"base": self.base.locator}),
        }
        if self.operation == "resize":
            return {"adapter": self.adapters[0].locator, **how}
        return {
            "adapters": [adapter.locator for adapter in self.adapters],
            "method": self.method.id,
            "settings": {
                name: list(value) if isinstance(value, tuple) else value for name, value in self.values.items()
            },
            "strengths": list(options.strengths_for(self.adapters)),
            **how,
            "average_saved_modules": options.whole is Whole.AVERAGE,
            "skip_saved_modules": options.whole is Whole.SKIP,
            "saved_modules_from": options.saved_modules_from,
        }


class Made(NamedTuple):
    """A result that is complete and not yet written.

    modules : all of them, those too that are in no file
    """

    files: AdapterFiles
    report: Report
    operation: str
    arguments: Mapping[str, Any]
    modules: Sequence[Joined]
    bytes_read: int

    def with_findings(self, findings: Sequence[Finding]) -> Made:
        """The same, whose receipt tells more."""
        return self._replace(report=replace(self.report, findings=(*findings, *self.report.findings)))

    def planned(self, target: CombineTarget) -> Report:
        """The receipt of a run that writes nothing."""
        rows = [{"path": name, "size_bytes": size, "sha256": ""} for name, size in self.files.sizes.items()]
        return with_receipt(self.report, self.operation, self.arguments, rows, {}, target.inputs(), target.plugins)

    def staged(self, target: CombineTarget) -> StagedFolder:
        """The folder in the making."""
        recipe = json.dumps([self.operation, self.arguments, self.files.sizes], sort_keys=True)
        identity = hashlib.sha256(recipe.encode()).hexdigest()
        return StagedFolder(target.output, identity, disk=target.disk, overwrite=target.overwrite, is_resumable=False)

    def write(self, staged: StagedFolder, target: CombineTarget, observer: Observer, *, started: float) -> Report:
        """Write the files and the receipt, which is returned; the name is given by whoever staged it.

        Parameters
        ----------
        started : when, by ``time.perf_counter``
        """
        if staged.is_complete:
            raise OperationError(
                f"{quoted(staged.target)} was completed by the run that was interrupted.",
                hint="There is nothing left to do.",
            )
        self.files.write(staged, observer)
        finished = sorted(staged.finished.values())
        numbers = {
            "seconds": time.perf_counter() - started,
            "bytes_read": self.bytes_read,
            "bytes_written": sum(file.size_bytes for file in finished),
            "peak_memory_bytes": peak_memory_bytes(),
        }
        rows = [{"path": file.name, "size_bytes": file.size_bytes, "sha256": file.sha256} for file in finished]
        inputs = target.inputs()
        report = with_receipt(self.report, self.operation, self.arguments, rows, numbers, inputs, target.plugins)
        content = receipt_bytes(report)
        with staged.file(RECEIPT, len(content)) as file:
            file.write(content)
        return report


def supply_of(
    adapters: Sequence[Adapter],
    joints: Sequence[Joint],
    base: Base | None,
    reader: Reader,
    *,
    is_kept: bool = False,
) -> tuple[Supply, list[Finding]]:
    """The factors of some modules, and what is to be said of the base behind them.

    Raises
    ------
    CompatibilityError
        the base does not fit those adapters that need it.
    """
    if base is None:
        return Supply(len(adapters), reader, is_kept=is_kept), []
    behind = Behind(base, adapters, joints, reader)
    return Supply(len(adapters), reader, behind=behind, is_kept=is_kept), behind.findings


def combine(
    adapters: Sequence[Adapter],
    method: MergeMethod,
    target: CombineTarget,
    *,
    reader: Reader,
    options: CombineOptions | None = None,
    parameters: Mapping[str, Any] | None = None,
    operation: str = "combine",
    base: Base | None = None,
    observer: Observer | None = None,
) -> Report:
    """Combine adapters, and write the result.

    Parameters
    ----------
    method : gives the factors of each module
    parameters : of the method, values or texts as a person types them
    operation : ``combine``, or ``resize`` of one adapter
    base : behind adapters whose change is known with it alone: DoRA, PiSSA

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
    target.require_free(adapters, base)
    started = time.perf_counter()
    joints = joints_of(adapters, options, has_base=base is not None)
    supply, findings = supply_of(adapters, joints, base, reader)
    recipe = Recipe(adapters, method, options, values, operation, base)
    saved = gather_saved(adapters, options, reader)
    observer = observer or Unwatched()
    made = recipe.made(joints, supply, saved, observer).with_findings(findings)
    if target.is_dry:
        return made.planned(target)
    with made.staged(target) as staged:
        report = made.write(staged, target, observer, started=started)
        staged.commit()
    return report
