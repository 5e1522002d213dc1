"""The analysis: an adapter against random factors, or a full fine-tune against noise."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from lora_lab.domain.adapter import Adapter
from lora_lab.domain.parameters import Parameter, ParameterKind
from lora_lab.domain.progress import stop_if_cancelled
from lora_lab.domain.report import Finding, Report, Scalars, Table
from lora_lab.errors import CompatibilityError, quoted
from lora_lab.extension.contracts import Need
from lora_lab_rmt import factored, full
from lora_lab_rmt.columns import FACTORED, FULL, TOTALS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lora_lab.domain.base import Base
    from lora_lab.domain.progress import Observer
    from lora_lab.domain.tensors import TensorRef
    from lora_lab.extension.contracts import AnalysisContext

_TABLE: Final = "modules"
_PARAMETERS: Final = (
    Parameter("draws", "Random cores per shape", ParameterKind.INTEGER, 200, minimum=20, maximum=100_000),
    Parameter("quantile", "Quantile that chance stays below", ParameterKind.NUMBER, 0.99, minimum=0.5, maximum=0.9999),
)


class RandomMatrixView:
    """Which directions of an update stand out from what chance would make.

    Of an adapter: singular values of s·B·A beside those of Gaussian factors of the same norms. A noise threshold of ΔW
    itself is ill-posed, its median singular value being zero. Of a full fine-tune, given its base: singular values of
    W_ft − W_0 beside the Marchenko–Pastur edge at the noise level of their own bulk.
    """

    id = "rmt"
    title = "Random matrices"
    summary = "Directions of the update that exceed what random factors, or noise, of the same size would have."
    reference = "Marchenko & Pastur 1967; Gavish & Donoho, arXiv 1305.5870; Burda, Janik & Waclaw, arXiv 0912.3422"
    parameters: tuple[Parameter, ...] = _PARAMETERS
    subjects = (1, 1)
    takes_models = True
    base = Need.OPTIONAL

    def reads(self, context: AnalysisContext) -> list[TensorRef]:
        """Both tensors of every matrix of a full fine-tune; of an adapter none, its factors being at hand."""
        subject = context.subjects[0]
        if isinstance(subject, Adapter):
            return []
        pairs = full.pairs_of(subject, _base_of(subject, context), context.modules)
        return [ref for _, tuned, original in pairs for ref in (tuned, original)]

    def run(self, context: AnalysisContext) -> Report:
        """Compare with chance.

        Raises
        ------
        CompatibilityError
            the subject is a checkpoint and there is no base, or nothing in it that the base has too.
        AdapterError, NumericalError
            ΔW cannot be computed, or is not finite.
        """
        defaults = {parameter.id: parameter.default for parameter in self.parameters}
        context = replace(context, parameters={**defaults, **context.parameters})
        subject = context.subjects[0]
        if isinstance(subject, Adapter):
            total, found = factored.count(subject, context), factored.rows(subject, context)
            columns, notes = FACTORED, [factored.NO_NOISE_LEVEL]
        else:
            base = _base_of(subject, context)
            pairs = full.pairs_of(subject, base, context.modules)
            total, found = len(pairs), full.rows(pairs, context)
            columns, notes = FULL, list(full.outside_findings(subject, base))
        rows = list(_watched(found, total, context.observer))
        return Report(
            command=self.id,
            title=f"{subject.name} against chance",
            tables=(Table(_TABLE, "Modules", columns, tuple(rows)),),
            scalars=(Scalars("totals", "Totals", TOTALS, _totals(rows)),),
            findings=(*notes, *_undefined(rows)),
            parameters={**context.parameters, "seed": context.seed},
        )


def _base_of(model: Base, context: AnalysisContext) -> Base:
    if context.base is None:
        raise CompatibilityError(
            f"{quoted(model.name)} is a full checkpoint, and its update W_ft − W_0 needs the base it was trained from.",
            hint="Add --base BASE.",
        )
    return context.base


def _watched(rows: Iterator[dict[str, Any]], total: int, observer: Observer) -> Iterator[dict[str, Any]]:
    for done, row in enumerate(rows, start=1):
        observer.rows(_TABLE, [row])
        observer.advance(done, total, row["module"])
        stop_if_cancelled(observer)
        yield row


def _totals(rows: list[dict[str, Any]]) -> dict[str, Any]:
    learnt = [row["learnt"] for row in rows if row["learnt"] is not None]
    return {"modules": len(rows), "learnt": sum(learnt), "modules_without": learnt.count(0)}


def _undefined(rows: list[dict[str, Any]]) -> Iterator[Finding]:
    for row in rows:
        name, spectrum = row["module"], row["singular_values"]
        if not spectrum or not spectrum[0]:
            yield Finding("zero_delta", f"In {quoted(name)} ΔW is zero: there is nothing to compare.", name)
        elif row["learnt"] is None:
            yield Finding(
                "no_noise_level",
                f"In {quoted(name)} at least half the singular values are zero: the update is of low rank, the noise "
                "level of its bulk undefined.",
                name,
            )
