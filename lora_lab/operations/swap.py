"""One adapter out of a merged model and another in: W′ ← (W′ − ΔW_A) + ΔW_B in one pass, or exactly over the base."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lora_lab.analyses.trained_on import base_name_findings
from lora_lab.domain.progress import Unwatched
from lora_lab.errors import LoraLabError, quoted
from lora_lab.operations.ancestry import require_behind, told_by
from lora_lab.operations.execution import Execution
from lora_lab.operations.held import taken_amiss
from lora_lab.operations.layout import plan_of
from lora_lab.operations.options import MergeOptions, SavedModules
from lora_lab.operations.planning import changes_of
from lora_lab.operations.proof import proven_by
from lora_lab.operations.restoring import Restorer, RestoringExecution, planned_over
from lora_lab.operations.running import Outcome, Target, carried_out
from lora_lab.operations.subtracting import Subtractor
from lora_lab.operations.undo_writing import Behind, UndoWriter, written
from lora_lab.operations.unmerge import doubtful, proof_of, restored_plan, subtracted, without_added
from lora_lab.storage.disk import Disk

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from lora_lab.domain.adapter import Adapter
    from lora_lab.domain.base import Base
    from lora_lab.domain.plan import Plan
    from lora_lab.domain.progress import Observer
    from lora_lab.domain.report import Finding, InputRecord, Report
    from lora_lab.extension.contracts import Reader
    from lora_lab.operations.undo import Undo
    from lora_lab.storage.staging import StagedFolder


@dataclass(frozen=True)
class _Swap:
    """One swap's inputs."""

    merged: Base
    old: tuple[Adapter, ...]
    new: tuple[Adapter, ...]
    old_options: MergeOptions
    options: MergeOptions
    reader: Reader
    target: Target
    write_undo: Path | None
    observer: Observer

    def arguments(self, **more: Any) -> dict[str, Any]:
        return {
            "merged": self.merged.locator,
            "from": [adapter.locator for adapter in self.old],
            "to": [adapter.locator for adapter in self.new],
            "strengths_from": list(self.old_options.strengths_for(self.old)),
            "strengths_to": list(self.options.strengths_for(self.new)),
            "dtype": self.options.dtype.value if self.options.dtype else None,
            "rounding": str(self.options.rounding),
            "seed": self.options.seed,
            "modules": list(self.options.modules),
            "partial": self.options.is_partial,
            "skip_saved_modules": self.options.saved_modules is SavedModules.SKIP,
            "saved_modules_from": self.options.saved_modules_from,
            "device": self.options.device.partition(":")[0],
            **self.options.words,
            **more,
        }

    def taken_amiss(self, *, is_all: bool) -> tuple[Finding, ...]:
        """Where what goes out is not what the receipt says is in."""
        return taken_amiss(self.merged, self.old, self.old_options.strengths_for(self.old), is_all=is_all)

    @property
    def names(self) -> list[str]:
        return [adapter.name for adapter in self.new]


def swap(
    merged: Base,
    from_adapters: Sequence[Adapter],
    to_adapters: Sequence[Adapter],
    output: Path,
    *,
    base: Base | None = None,
    undo: Undo | None = None,
    write_undo: Path | None = None,
    reader: Reader,
    from_options: MergeOptions | None = None,
    options: MergeOptions | None = None,
    inputs: Callable[[], Sequence[InputRecord]] = tuple,
    overwrite: bool = False,
    resume: bool = False,
    dry_run: bool = False,
    disk: Disk | None = None,
    observer: Observer | None = None,
) -> Report:
    """Write to the folder `output` what merging `to_adapters` into the base of `merged` gives.

    Parameters
    ----------
    base, undo : one of them makes it exact: the bytes are those of a merge into the base
    write_undo : file to write that undoes the swap down to the base; with `base` or `undo` alone
    from_options : strengths, globs and whole modules of the merge that is undone; those of `undo` where that is given
    options : of the new merge

    Returns
    -------
    the receipt, with ``proof`` saying whether the bits are those of a merge into the base

    Raises
    ------
    CompatibilityError
        the base, undo file or adapters are not those of this merge, or what was done cannot be subtracted.
    LoraLabError
        base and undo file are given both, or an undo file is wished for without either, or in the place of `undo`.
    OperationError
        no room, no permission, or the output exists.
    """
    _require_sensible(base, undo, write_undo)
    read = (merged, *from_adapters, *to_adapters, *(() if base is None else (base,)))
    wanted = _Swap(
        merged,
        tuple(from_adapters),
        tuple(to_adapters),
        (undo.options if undo is not None else from_options) or MergeOptions(),
        options or MergeOptions(),
        reader,
        Target(output, overwrite, resume, disk or Disk(), inputs, dry_run, changed=merged.shards, read=read),
        write_undo,
        observer or Unwatched(),
    )
    if base is not None:
        return _over_base(wanted, base)
    return _over_undo(wanted, undo) if undo is not None else _in_one_pass(wanted)


def _require_sensible(base: Base | None, undo: Undo | None, write_undo: Path | None) -> None:
    if base is not None and undo is not None:
        raise LoraLabError("Got a base and an undo file, expected one of them.", hint="The base alone is enough.")
    if write_undo is not None and base is None and undo is None:
        raise LoraLabError(
            "An undo file can only be written where the base's bits are known.", hint="Give the base or an undo file."
        )
    if undo is not None and write_undo is not None and write_undo.exists() and write_undo.samefile(undo.path):
        raise LoraLabError(
            f"{quoted(write_undo)} is what the base is read from, expected another name for the new undo file.",
            hint="Both are needed until the swap is complete; remove the old one then.",
        )


def _over_base(wanted: _Swap, base: Base) -> Report:
    told = told_by(wanted.merged)
    touched = list(changes_of(wanted.old, base, wanted.old_options).parts) if told is None else []
    findings = require_behind(base, wanted.merged, told, touched, wanted.observer)
    changes = changes_of(wanted.new, base, wanted.options)
    changes.findings += [finding for adapter in wanted.new for finding in base_name_findings(adapter, base)]
    stamps = [*base.shards, *(stamp for adapter in wanted.new for stamp in adapter.files)]
    arguments = wanted.arguments(base=base.locator)
    plan = plan_of("swap", base, changes, dtype=wanted.options.dtype, arguments=arguments, inputs=stamps)
    plan = replace(plan, findings=(*plan.findings, *wanted.taken_amiss(is_all=True)))

    writer = _undo_writer(wanted, plan, base, None)

    def work(staged: StagedFolder) -> Outcome:
        why, doubts = proven_by(
            base, wanted.merged, told, wanted.old, wanted.old_options, wanted.reader, wanted.observer
        )
        outcome = written(
            Execution(plan, wanted.new, wanted.reader, wanted.options, wanted.observer, writer), writer, staged
        )
        proof = proof_of("base", f"a merge into the base; that it is the one: {why}", is_exact=True)
        return replace(outcome, scalars=(proof, *outcome.scalars), findings=(*findings, *doubts))

    return carried_out(plan, wanted.names, _with_room(wanted.target, writer), work)


def _over_undo(wanted: _Swap, undo: Undo) -> Report:
    undo.require_adapters(wanted.old)
    base, headers = undo.base_behind(wanted.merged)
    changes = changes_of(wanted.new, base, wanted.options)
    known = {file.name: file.sha256 for file in undo.files}
    behind = Behind(known, headers, undo.document_bytes)
    with Restorer(undo, base, wanted.merged, wanted.old, wanted.reader) as restorer:
        plan = restored_plan(
            "swap",
            restorer,
            wanted.merged,
            base,
            headers,
            changes,
            (*wanted.old, *wanted.new),
            wanted.options.dtype,
            wanted.arguments(),
        )

        writer = _undo_writer(wanted, plan, base, behind)

        def work(staged: StagedFolder) -> Outcome:
            execution = RestoringExecution(
                restorer, plan, wanted.new, wanted.reader, wanted.options, wanted.observer, writer
            )
            outcome = written(execution, writer, staged)
            proof = proof_of("undo", "sha256 of every restored tensor in the undo file", is_exact=True)
            return replace(outcome, scalars=(proof, *outcome.scalars))

        return carried_out(plan, wanted.names, _with_room(wanted.target, writer), work)


def _undo_writer(wanted: _Swap, plan: Plan, base: Base, behind: Behind | None) -> UndoWriter | None:
    """Of the new undo file, where one is wished for."""
    if wanted.write_undo is None:
        return None
    target = wanted.target
    return UndoWriter(
        wanted.write_undo,
        target.output,
        plan,
        base,
        wanted.new,
        wanted.options,
        disk=target.disk,
        overwrite=target.overwrite or target.resume,
        behind=behind,
    )


def _with_room(target: Target, writer: UndoWriter | None) -> Target:
    return target if writer is None else replace(target, beside=writer.room)


def _in_one_pass(wanted: _Swap) -> Report:
    bare, _ = without_added(wanted.merged)
    changes = changes_of(wanted.new, bare, wanted.options)
    whole = {
        name
        for name, parts in changes.parts.items()
        if len(parts) == 1
        and parts[0].saved is not None
        and parts[0].strength == 1.0
        and _is_whole(parts[0].saved.role)
    }
    going, base = subtracted(wanted.merged, wanted.old, wanted.old_options, whole)
    adapters = (*wanted.old, *wanted.new)
    stamps = [*wanted.merged.shards, *(stamp for adapter in adapters for stamp in adapter.files)]
    ground = Subtractor(going, base, wanted.old, wanted.reader)
    direct = plan_of("swap", base, changes, dtype=wanted.options.dtype, arguments=wanted.arguments(), inputs=stamps)
    plan = planned_over(ground, direct)
    plan = replace(plan, findings=(*plan.findings, *wanted.taken_amiss(is_all=False)))

    def work(staged: StagedFolder) -> Outcome:
        execution = RestoringExecution(ground, plan, wanted.new, wanted.reader, wanted.options, wanted.observer)
        execution.write(staged)
        return doubtful(
            execution, ground.doubts, "inexact_swap", "Subtracting does not give the base's bits back to swap over"
        )

    return carried_out(plan, wanted.names, wanted.target, work)


def _is_whole(role: Any) -> bool:
    from lora_lab.domain.adapter import SavedRole

    return role is not SavedRole.TRAINABLE_TOKENS
