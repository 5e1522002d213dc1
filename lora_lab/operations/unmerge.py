"""The base back from a merged model: to the bit with the base or an undo file, nearly by subtraction."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lora_lab.domain.plan import Plan
from lora_lab.domain.progress import Unwatched
from lora_lab.domain.report import Column, ColumnKind, Finding, Scalars, Table
from lora_lab.errors import CompatibilityError, LoraLabError, quoted
from lora_lab.linalg.subtraction import Doubt, doubt_about
from lora_lab.operations.ancestry import require_behind, told_by
from lora_lab.operations.execution import Execution
from lora_lab.operations.held import taken_amiss
from lora_lab.operations.layout import other_files, plan_of, steps_of, weight_files
from lora_lab.operations.options import MergeOptions, SavedModules
from lora_lab.operations.planning import Changes, changes_of
from lora_lab.operations.proof import proven_by
from lora_lab.operations.restoring import Restorer, RestoringExecution, planned_over
from lora_lab.operations.running import Outcome, Target, carried_out
from lora_lab.storage.disk import Disk
from lora_lab.storage.files import sha256_of

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Mapping, Sequence

    import torch

    from lora_lab.domain.adapter import Adapter
    from lora_lab.domain.base import Base
    from lora_lab.domain.plan import Part, Step
    from lora_lab.domain.progress import Observer
    from lora_lab.domain.report import InputRecord, Report
    from lora_lab.extension.contracts import Reader
    from lora_lab.operations.undo import Undo
    from lora_lab.operations.weights import Band
    from lora_lab.storage.staging import StagedFolder

PROOF: Final = (
    Column("method", "Method", ColumnKind.TEXT),
    Column("exact", "Exact", ColumnKind.VALUE),
    Column("proven_by", "Proven by", ColumnKind.TEXT),
    Column("expected_changed_fraction", "Expected to differ", formula="Σ max(0, 1 − u/u′) / elements"),
    Column("relative_error_bound", "Error at most", formula="√Σ u′² / ‖W‖_F over elements with u′ > u"),
)
DOUBTS: Final = (
    Column("tensor", "Tensor", ColumnKind.TEXT),
    Column("expected_changed_fraction", "Expected to differ", formula="Σ max(0, 1 − u/u′) / elements"),
    Column("relative_error_bound", "Error at most", formula="√Σ u′² / ‖W‖_F over elements with u′ > u"),
)


def unmerge(
    merged: Base,
    output: Path,
    *,
    base: Base | None = None,
    undo: Undo | None = None,
    adapters: Sequence[Adapter] = (),
    reader: Reader,
    options: MergeOptions | None = None,
    inputs: Callable[[], Sequence[InputRecord]] = tuple,
    overwrite: bool = False,
    resume: bool = False,
    dry_run: bool = False,
    disk: Disk | None = None,
    observer: Observer | None = None,
) -> Report:
    """Write the base that `merged` was made from to the folder `output`.

    Parameters
    ----------
    base : gives its own bytes, once it is shown to be behind `merged`
    undo : gives the base's bytes back together with `adapters`, those of its recipe
    adapters : alone, they are subtracted, which is not exact; with `base`, they say what was touched where no receipt
        does
    options : strengths, globs and whole modules of the merge that is undone; those of the undo file where there is one

    Returns
    -------
    the receipt, with ``proof`` saying whether the bits are the base's and how that is known

    Raises
    ------
    CompatibilityError
        the base, undo file or adapters are not those of this merge, or what was done cannot be subtracted.
    LoraLabError
        neither base, undo file nor adapters are given, or base and undo file both.
    OperationError
        no room, no permission, or the output exists.
    """
    observer = observer or Unwatched()
    read = (merged, *adapters, *(() if base is None else (base,)))
    target = Target(output, overwrite, resume, disk or Disk(), inputs, is_dry=dry_run, changed=merged.shards, read=read)
    if base is not None and undo is not None:
        raise LoraLabError("Got a base and an undo file, expected one of them.", hint="The base alone is enough.")
    if base is not None:
        return _from_base(merged, base, adapters, reader, options or MergeOptions(), target, observer)
    if undo is not None:
        return _from_undo(merged, undo, adapters, reader, options or MergeOptions(), target, observer)
    if not adapters:
        raise LoraLabError(
            f"Nothing says what {quoted(merged.name)} was merged from, expected a base, an undo file or adapters.",
            hint="--base and --undo give the base's bits back; --adapter subtracts.",
        )
    return _by_subtraction(merged, adapters, reader, options or MergeOptions(), target, observer)


def _from_base(
    merged: Base,
    base: Base,
    adapters: Sequence[Adapter],
    reader: Reader,
    options: MergeOptions,
    target: Target,
    observer: Observer,
) -> Report:
    told = told_by(merged)
    touched = list(changes_of(adapters, base, options).parts) if adapters and told is None else []
    findings = require_behind(base, merged, told, touched, observer)
    arguments = {**_said(merged, adapters, options), "base": base.locator}
    plan = plan_of("unmerge", base, Changes(), dtype=None, arguments=arguments, inputs=[*merged.shards, *base.shards])

    def work(staged: StagedFolder) -> Outcome:
        why, doubts = proven_by(base, merged, told, adapters, options, reader, observer)
        execution = Execution(plan, (), reader, MergeOptions(), observer)
        execution.write(staged)
        proof = proof_of("base", f"bytes of the base; that it is the one: {why}", is_exact=True)
        return Outcome(execution, (proof,), findings=(*findings, *doubts))

    return carried_out(plan, [adapter.name for adapter in adapters] or [merged.name], target, work)


def _from_undo(
    merged: Base,
    undo: Undo,
    adapters: Sequence[Adapter],
    reader: Reader,
    options: MergeOptions,
    target: Target,
    observer: Observer,
) -> Report:
    undo.require_adapters(adapters)
    base, headers = undo.base_behind(merged)
    with Restorer(undo, base, merged, adapters, reader) as restorer:
        plan = restored_plan(
            "unmerge", restorer, merged, base, headers, Changes(), adapters, None, _said(merged, adapters, options)
        )

        def work(staged: StagedFolder) -> Outcome:
            execution = RestoringExecution(restorer, plan, adapters, reader, MergeOptions(), observer)
            execution.write(staged)
            _require_files(undo, merged, staged)
            by = "sha256 of every tensor and file of the base in the undo file"
            return Outcome(execution, (proof_of("undo", by, is_exact=True),))

        return carried_out(plan, [adapter.name for adapter in adapters], target, work)


def restored_plan(
    operation: str,
    restorer: Restorer,
    merged: Base,
    base: Base,
    headers: dict[str, bytes],
    changes: Changes,
    adapters: Sequence[Adapter],
    dtype: Any,
    arguments: Mapping[str, Any],
) -> Plan:
    """A plan over a base that is read through its undo file."""
    undo = restorer.undo
    files = weight_files(steps_of(changes, base, dtype), base, headers)
    copies, documents, findings = other_files(base, files, undo.document_bytes)
    return planned_over(
        restorer,
        Plan(
            operation,
            files,
            copies,
            documents,
            (*changes.findings, *findings),
            {**arguments, "undo": undo.path},
            (*merged.shards, undo.stamp, *(stamp for adapter in adapters for stamp in adapter.files)),
        ),
    )


def _require_files(undo: Undo, merged: Base, staged: StagedFolder) -> None:
    """Refuse files that are not the base's to the byte."""
    for file in undo.files:
        if staged.finished[file.name].sha256 == file.sha256:
            continue
        there = next((stamp.path for stamp in merged.shards if Path(stamp.path).name == file.name), None)
        is_changed = there is not None and sha256_of(there) != file.merged_sha256
        what = "was changed after the merge" if is_changed else "does not give the base's bits back"
        raise CompatibilityError(
            f"{quoted(file.name)} of {quoted(merged.name)} {what}: unmerged, its sha256 is not the base's.",
            hint="Unmerge with the base.",
        )


class Doubts:
    """A witness of a subtraction that works out what it cannot know, by tensor.

    Parameters
    ----------
    look : what is uncertain about rows, from what they were and what they became
    """

    def __init__(self, look: Callable[[torch.Tensor, torch.Tensor], Doubt]) -> None:
        self._look = look
        self.doubts: dict[str, Doubt] = {}
        self._doubt = Doubt()

    def begin(self, step: Step) -> None:
        """The rows of this tensor come next."""
        self._doubt = self.doubts.setdefault(step.name, Doubt())

    def prepared(self, band: Band) -> None:
        """Nothing needs to be known."""

    def look(self, prepared: None, before: torch.Tensor, after: torch.Tensor, first: int) -> Doubt:  # noqa: ARG002
        """What is uncertain about these rows."""
        return self._look(before, after)

    def take(self, element: int, seen: Doubt) -> None:  # noqa: ARG002
        """Add it up."""
        self._doubt.add(seen)

    def end(self, step: Step, sha256: str) -> None:
        """Nothing is left to do."""


def _by_subtraction(
    merged: Base,
    adapters: Sequence[Adapter],
    reader: Reader,
    options: MergeOptions,
    target: Target,
    observer: Observer,
) -> Report:
    changes, base = subtracted(merged, adapters, options)
    arguments = {
        **_said(merged, adapters, options),
        "strengths": list(options.strengths_for(adapters)),
        "modules": list(options.modules),
        "partial": options.is_partial,
        "skip_saved_modules": options.saved_modules is SavedModules.SKIP,
    }
    stamps = [*merged.shards, *(stamp for adapter in adapters for stamp in adapter.files)]
    plan = plan_of("unmerge", base, changes, dtype=None, arguments=arguments, inputs=stamps)
    amiss = taken_amiss(merged, adapters, options.strengths_for(adapters), is_all=False)
    plan = replace(plan, findings=(*plan.findings, *amiss))

    def work(staged: StagedFolder) -> Outcome:
        doubts = Doubts(doubt_about)
        execution = Execution(plan, adapters, reader, options, observer, doubts)
        execution.write(staged)
        return doubtful(execution, doubts.doubts, "inexact_unmerge", "Subtracting does not give the base's bits back")

    return carried_out(plan, [adapter.name for adapter in adapters], target, work)


def subtracted(
    merged: Base, adapters: Sequence[Adapter], options: MergeOptions, replaced: Container[str] = ()
) -> tuple[Changes, Base]:
    """What subtracting adapters changes, and the model without what their merge had added.

    Parameters
    ----------
    replaced : tensors that are written over whatever they hold

    Raises
    ------
    CompatibilityError
        what an adapter did cannot be subtracted: DoRA multiplies the weight, whole modules and tokens replaced it.
    """
    base, added = without_added(merged)
    back = tuple(-strength for strength in options.strengths_for(adapters))
    _require_not_parted(added & {f"{delta.module}.weight" for adapter in adapters for delta in adapter.deltas})
    changes = changes_of(adapters, base, replace(options, strengths=back))
    if options.saved_modules is SavedModules.TAKE:
        _require_not_parted(added - set(changes.added))
    changes.added.clear()
    for name in [name for name in changes.parts if name in replaced]:
        del changes.parts[name], changes.targets[name]
    for name, parts in changes.parts.items():
        for part in parts:
            _require_subtractable(name, part, adapters[part.adapter])
    return changes, base


def _require_not_parted(names: set[str]) -> None:
    if names:
        raise CompatibilityError(
            f"{quoted(min(names))} was parted from the layer that it shared its weight with, which subtracting does "
            "not undo.",
            hint="Give the base or the undo file.",
        )


def without_added(merged: Base) -> tuple[Base, set[str]]:
    """The model without the tensors that its receipt calls added, and their names."""
    told = told_by(merged)
    added = set(told.added) if told is not None else set()
    return replace(merged, tensors={name: ref for name, ref in merged.tensors.items() if name not in added}), added


def _require_subtractable(name: str, part: Part, adapter: Adapter) -> None:
    if part.saved is not None:
        raise CompatibilityError(
            f"{quoted(adapter.name)} brought {quoted(name)} whole, and what stood there before cannot be computed.",
            hint="Give the base or the undo file; --skip-saved-modules leaves it as it is.",
        )
    if part.delta is not None and part.delta.magnitude is not None:
        raise CompatibilityError(
            f"{quoted(adapter.name)} is DoRA, whose norms are of the unmerged {quoted(name)}: it cannot be subtracted.",
            hint="Give the base or the undo file.",
        )


def doubtful(execution: Execution, doubts: Mapping[str, Doubt], code: str, what: str) -> Outcome:
    """Figures and warning of what was subtracted; `what` begins the sentence."""
    total = Doubt()
    rows = []
    for name, doubt in doubts.items():
        total.add(doubt)
        figures = {
            "expected_changed_fraction": doubt.expected_fraction,
            "relative_error_bound": doubt.relative_bound,
        }
        rows.append({"tensor": name, **figures})
    finding = Finding(
        code,
        f"{what}: {total.expected_fraction or 0.0:.2%} of the changed weights are expected to differ, by at most "
        f"{total.relative_bound or 0.0:.1e} of their norm; --base and --undo are exact.",
    )
    proof = proof_of("subtraction", "nothing", is_exact=False, doubt=total)
    return Outcome(execution, (proof,), (Table("doubts", "Doubts", DOUBTS, tuple(rows), key="tensor"),), (finding,))


def proof_of(method: str, by: str, *, is_exact: bool, doubt: Doubt | None = None) -> Scalars:
    """How the output was made, and how it is known to be right."""
    values = {
        "method": method,
        "exact": is_exact,
        "proven_by": by,
        "expected_changed_fraction": 0.0 if doubt is None else doubt.expected_fraction,
        "relative_error_bound": 0.0 if doubt is None else doubt.relative_bound,
    }
    return Scalars("proof", "Proof", PROOF, values)


def _said(merged: Base, adapters: Sequence[Adapter], options: MergeOptions) -> dict[str, Any]:
    return {"merged": merged.locator, "adapters": [adapter.locator for adapter in adapters], **options.words}
