"""Whether an adapter will land on a base, every module on a weight of its shape, and what to know before."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, Final

from lora_lab.analyses.check_findings import UNLANDED, before_landing, dead_modules, landing_findings
from lora_lab.analyses.scope import base_of
from lora_lab.domain.adapter import Adapter
from lora_lab.domain.matching import match_modules
from lora_lab.domain.modules import select_modules
from lora_lab.domain.report import Column, ColumnKind, Finding, Report, Scalars, Table
from lora_lab.errors import AdapterError, CompatibilityError, quoted
from lora_lab.extension.contracts import Need

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lora_lab.domain.base import Base
    from lora_lab.domain.matching import Match
    from lora_lab.domain.parameters import Parameter
    from lora_lab.domain.tensors import TensorRef
    from lora_lab.extension.contracts import AnalysisContext

_MODULE: Final = Column("module", "Module", ColumnKind.TEXT)
_TENSOR: Final = Column("tensor", "Tensor of the base", ColumnKind.TEXT)
_UNMATCHED: Final = (_MODULE, Column("suggestions", "May be", ColumnKind.LIST, formula="paths of the base spelt alike"))
_CLASHES: Final = (
    _MODULE,
    _TENSOR,
    Column("expected", "ΔW", ColumnKind.SHAPE, formula="shape of ΔW as the base stores the weight"),
    Column("got", "Base", ColumnKind.SHAPE, formula="shape of the base's weight"),
)
_DEAD: Final = (_MODULE, Column("reason", "Reason", ColumnKind.TEXT))
_LANDED: Final = (
    _MODULE,
    _TENSOR,
    Column("shape", "Shape", ColumnKind.SHAPE, formula="of the base's weight"),
    Column("dtype", "dtype", ColumnKind.TEXT),
)
_WHOLE: Final = (
    Column("ok", "Lands", ColumnKind.VALUE, formula="every module on a weight of its shape, every factor finite"),
    Column("matched", "Modules matched", ColumnKind.INTEGER),
    Column("prefix", "Prefix", ColumnKind.TEXT, formula="what happens to a module's path; empty: nothing"),
    Column(
        "base_fingerprint",
        "Fingerprint of the base",
        ColumnKind.TEXT,
        formula="sha256 of its tensors' names, dtypes and shapes and its files' names and sizes; no weight is read",
    ),
)


class Check:
    """Match every module of an adapter with a weight of a base, whose headers are all that is read of it."""

    id = "check"
    title = "Check"
    summary = "Will this adapter land on this base: matched, unmatched, clashing and dead modules."
    reference = ""
    parameters: tuple[Parameter, ...] = ()
    subjects = (1, 1)
    takes_models = False
    base = Need.REQUIRED
    is_on_processor = True

    def reads(self, context: AnalysisContext) -> list[TensorRef]:
        """None: headers say where modules land."""
        del context
        return []

    def run(self, context: AnalysisContext) -> Report:
        """Look for each module's place.

        Raises
        ------
        AdapterError
            the subject is a full checkpoint.
        CompatibilityError
            the base is a configuration without weights.

        Notes
        -----
        What does not fit is a row and a finding, never an error: two prefixes that fit equally well are the finding
        ``ambiguous``. O(modules + weights) time, and one pass over the adapter's factors.
        """
        adapter = context.subjects[0]
        if not isinstance(adapter, Adapter):
            raise AdapterError(
                f"{quoted(adapter.name)} is a full checkpoint, expected an adapter.",
                hint="Two full checkpoints are compared by: lora-lab intrinsic BASE FINETUNED",
            )
        base = base_of(context)
        findings = [*adapter.findings, *base.findings, *before_landing(adapter, base)]
        match = None
        try:
            match = match_modules(adapter, base)
        except CompatibilityError as error:
            findings.append(Finding("ambiguous", str(error)))
        wanted = frozenset(select_modules(adapter.modules, context.modules))
        if match is not None:
            findings.extend(landing_findings(adapter, base, match))
        dead, unsound = dead_modules([delta for delta in adapter.deltas if delta.module in wanted], context)
        findings.extend(unsound)
        ok = match is not None and _is_whole(match, wanted) and all(one.code not in UNLANDED for one in findings)
        return Report(
            command=self.id,
            title=f"{adapter.name} on {base.name}",
            tables=_tables(match, wanted, dead),
            scalars=(
                Scalars(
                    "",
                    "Check",
                    _WHOLE,
                    {
                        "ok": ok,
                        "matched": len(wanted & match.weights.keys()) if match else 0,
                        "prefix": match.prefix if match else "",
                        "base_fingerprint": fingerprint_of(base),
                    },
                ),
            ),
            findings=tuple(dict.fromkeys(findings)),
            verdict=ok,
        )


def fingerprint_of(base: Base) -> str:
    """Sum up what the headers of a base say: sha256 over one JSON line for each tensor and each file, sorted.

    A line is ``["tensor", name, dtype, shape]`` or ``["file", name, size in bytes]``. It does not depend on the folder
    or on dates, and no weight is read: a base trained further under the same names has the same fingerprint.

    Returns
    -------
    64 hexadecimal digits
    """
    lines = [
        json.dumps(["tensor", name, ref.dtype.value, list(ref.shape)], ensure_ascii=False)
        for name, ref in base.tensors.items()
    ]
    lines += [
        json.dumps(["file", _file_name(stamp.path), stamp.size_bytes], ensure_ascii=False) for stamp in base.shards
    ]
    return hashlib.sha256("\n".join(sorted(lines)).encode(errors="surrogatepass")).hexdigest()


def _file_name(path: str) -> str:
    return path.replace("\\", "/").rpartition("/")[2]


def _is_whole(match: Match, wanted: Iterable[str]) -> bool:
    return all(module in match.weights for module in wanted)


def _tables(match: Match | None, wanted: frozenset[str], dead: list[dict[str, Any]]) -> tuple[Table, ...]:
    unmatched = match.unmatched if match else {}
    clashes = match.clashes if match else ()
    weights = match.weights if match else {}
    return (
        Table(
            "unmatched",
            "Without a place",
            _UNMATCHED,
            tuple(
                {"module": module, "suggestions": list(paths)}
                for module, paths in unmatched.items()
                if module in wanted
            ),
        ),
        Table(
            "shape_mismatch",
            "Of another shape",
            _CLASHES,
            tuple(
                {
                    "module": clash.module,
                    "tensor": clash.tensor,
                    "expected": list(clash.expected),
                    "got": list(clash.got),
                }
                for clash in clashes
                if clash.module in wanted
            ),
        ),
        Table("dead", "Dead", _DEAD, tuple(dead)),
        Table(
            "modules",
            "Landed",
            _LANDED,
            tuple(
                {"module": module, "tensor": ref.name, "shape": list(ref.shape), "dtype": ref.dtype.value}
                for module, ref in weights.items()
                if module in wanted
            ),
        ),
    )
