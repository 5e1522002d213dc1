"""Modules of an adapter on weights of a base that can be computed with, and a finding for each of the others."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from lora_lab.analyses.scope import adapter_for_base, base_of, change_findings, is_moved, selected
from lora_lab.analyses.trained_on import base_name_findings
from lora_lab.domain.adapter import DeltaKind
from lora_lab.domain.dtypes import PLAIN_FLOATS
from lora_lab.domain.matching import match_modules
from lora_lab.domain.report import Column, ColumnKind, Finding, Scalars
from lora_lab.errors import CompatibilityError, quoted

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from lora_lab.domain.adapter import Adapter, Delta
    from lora_lab.domain.base import Base
    from lora_lab.domain.tensors import TensorRef
    from lora_lab.extension.contracts import AnalysisContext, Factors


_WHOLE: Final = (
    Column("prefix", "Prefix", ColumnKind.TEXT, formula="what happens to a module's path; empty: nothing"),
)


def placed(context: AnalysisContext) -> Placing:
    """The adapter that the context is about on its base, restricted to the modules that are asked for.

    Raises
    ------
    AdapterError
        ΔW cannot be computed, or no module matches.
    CompatibilityError
        the base has no weights, or none of the modules.
    """
    adapter = adapter_for_base(context)
    base = base_of(context)
    return Placing(adapter, base, selected(adapter, context.modules))


class Placing:
    """Where each module of an adapter is in a base.

    Raises
    ------
    CompatibilityError
        two changes of prefix fit equally well, or no module can be computed with.
    """

    def __init__(self, adapter: Adapter, base: Base, deltas: Sequence[Delta]) -> None:
        self.adapter = adapter
        self.base = base
        self.is_moved = is_moved(adapter)
        self._match = match_modules(adapter, base)
        self._clashes = {clash.module: clash for clash in self._match.clashes}
        self.prefix = self._match.prefix
        self.left_out: list[Finding] = []
        self.deltas: list[Delta] = []
        for delta in deltas:
            reason = self._reason(delta)
            if reason is None:
                self.deltas.append(delta)
            else:
                self.left_out.append(reason)
        if not self.deltas:
            why = f": {self.left_out[0].message}" if self.left_out else ", which changes no weight."
            raise CompatibilityError(
                f"No module of {quoted(adapter.name)} can be compared with {quoted(base.name)}{why}",
                hint="lora-lab check SRC --base BASE says which modules land.",
            )

    def scalars(self, title: str) -> Scalars:
        """How modules were matched, for the head of a report."""
        return Scalars("", title, _WHOLE, {"prefix": self.prefix})

    def findings(self, met: Iterable[Finding]) -> tuple[Finding, ...]:
        """What the adapter says of itself and of its base, what has no place, and what was `met`; each once."""
        names = base_name_findings(self.adapter, self.base)
        return tuple(dict.fromkeys((*change_findings(self.adapter), *names, *self.left_out, *met)))

    @property
    def parts(self) -> list[TensorRef]:
        """The matrix of every module that is among ``deltas``."""
        return [self.part(delta) for delta in self.deltas]

    def weight(self, delta: Delta) -> TensorRef:
        """The tensor of a module that is among ``deltas``; of an expert, the tensor of all."""
        return self._match.weights[delta.module]

    def part(self, delta: Delta) -> TensorRef:
        """The matrix of `delta` alone: that of one expert inside the tensor of all, the tensor itself otherwise."""
        ref = self.weight(delta)
        if delta.kind is not DeltaKind.EXPERTS:
            return ref
        size = ref.size_bytes // ref.shape[0]
        begin = ref.begin_bytes + (delta.expert or 0) * size
        return replace(ref, shape=ref.shape[1:], begin_bytes=begin, end_bytes=begin + size)

    def _reason(self, delta: Delta) -> Finding | None:
        """Why `delta` cannot be compared with the base."""
        module = delta.module
        if module in self._clashes:
            clash = self._clashes[module]
            return Finding(
                "shape_mismatch",
                f"{quoted(module)} changes a weight of shape {_shown(clash.expected)}, got {_shown(clash.got)} in "
                f"{quoted(clash.tensor)}: the module is left out.",
                module,
            )
        ref = self._match.weights.get(module)
        if ref is None:
            alike = self._match.unmatched.get(module, ())
            meant = f"; spelt alike: {quoted(alike[0])}" if alike else ""
            return Finding("unmatched", f"The base has no weight for {quoted(module)}{meant}: it is left out.", module)
        if ref.dtype not in PLAIN_FLOATS:
            return Finding(
                "quantised_base",
                f"The weight {quoted(ref.name)} is stored as {ref.dtype.value}, expected F64, F32, F16 or BF16: "
                f"{quoted(module)} is left out.",
                module,
            )
        if delta.kind is DeltaKind.EXPERTS and ref.shape[1] == ref.shape[2]:
            return Finding(
                "orientation_unknown",
                f"The matrices of {quoted(ref.name)} are square, so the files do not say whether {quoted(module)} is "
                "stored transposed: it is left out.",
                module,
            )
        return None


def is_turned(factors: Factors, stored: Sequence[int]) -> bool:
    """Whether the base stores (lora_B @ lora_A)ᵀ in a matrix of shape `stored`; of an expert the shape says so."""
    return factors.is_transposed or tuple(stored) != (factors.lora_B.shape[0], factors.lora_A.shape[1])


def store_key(part: TensorRef, *more: Any) -> str:
    """What decides something computed from a weight alone: the file as it is, the bytes in it, and `more`."""
    return json.dumps([*more, part.file.identity, part.name, part.dtype.value, part.begin_bytes, part.end_bytes])


def _shown(shape: Sequence[int]) -> str:
    return "×".join(str(side) for side in shape)
