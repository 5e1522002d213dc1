"""Which weights of a base some adapters change, and what it takes to bring them into memory."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Final, Self

import torch

from lora_lab.analyses.scope import outside_findings, refuse, selected
from lora_lab.analyses.trained_on import base_name_findings
from lora_lab.domain.adapter import DeltaKind
from lora_lab.domain.dtypes import PLAIN_FLOATS
from lora_lab.domain.matching import match_modules
from lora_lab.domain.quantised import require_plain
from lora_lab.domain.report import Finding
from lora_lab.errors import CompatibilityError, quoted
from lora_lab.extension.contracts import SwapFactors, SwapModule, SwapScene
from lora_lab.formats.orientation import is_turned
from lora_lab.linalg.threads import in_lanes, worker_count
from lora_lab.storage.files import opened, require_unchanged, stamp_of
from lora_lab.storage.rows import read_rows

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from lora_lab.domain.adapter import Adapter, Delta
    from lora_lab.domain.base import Base
    from lora_lab.domain.tensors import FileStamp, TensorRef
    from lora_lab.extension.contracts import Factors, Reader

# Told by `inspect`; DoRA's magnitudes are honoured here.
_HONOURED: Final = ("dora",)


@dataclass(frozen=True, slots=True)
class Place:
    """Rows of one tensor of the base, seen as a matrix: all of them, or one expert's.

    is_multiplied : whether a layer multiplies by it as it is stored, (out, in)
    """

    name: str
    ref: TensorRef
    first: int
    shape: tuple[int, int]
    is_multiplied: bool

    @property
    def nbytes(self) -> int:
        """Bytes of these rows."""
        return prod(self.shape) * self.ref.dtype.bits // 8


class Workload:
    """The places that adapters change, with the adapters' factors in memory; a context that holds the base's files.

    Raises
    ------
    AdapterError, CompatibilityError, NumericalError
        an adapter cannot be known, does not fit the base or is not finite, or the base is quantised.
    """

    def __init__(self, adapters: Sequence[Adapter], base: Base, reader: Reader, modules: Sequence[str] = ()) -> None:
        require_plain(base, hint="Measure on the model before it was quantised.", why="nothing is merged into codes")
        self.names = tuple(adapter.name for adapter in adapters)
        self.findings = tuple(_findings(adapters, base))
        found: dict[str, Place] = {}
        parts: dict[str, list[list[SwapFactors]]] = {}
        for number, adapter in enumerate(adapters):
            refuse(adapter)
            match = match_modules(adapter, base)
            chosen = selected(adapter, modules)
            _require_placed(adapter, base, chosen, match.weights)
            for delta, factors in reader.factors_of(chosen):
                place = _place(delta, match.weights[delta.module])
                found.setdefault(place.name, place)
                own = parts.setdefault(place.name, [[] for _ in adapters])
                own[number].append(_oriented(delta, factors, reader, place.shape))
        self.places = tuple(found.values())
        self._parts = [tuple(tuple(own) for own in parts[place.name]) for place in self.places]
        self._files: dict[FileStamp, int] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        for place in self.places:
            if place.ref.file not in self._files:
                descriptor = self._stack.enter_context(opened(place.ref.file.path))
                require_unchanged(place.ref.file, stamp_of(descriptor, place.ref.file.path))
                self._files[place.ref.file] = descriptor
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def require_same_files(self) -> None:
        """Refuse what was read meanwhile when a file is no longer what it was; FileFormatError names it."""
        for stamp, descriptor in self._files.items():
            require_unchanged(stamp, stamp_of(descriptor, stamp.path))

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights that change."""
        return sum(place.nbytes for place in self.places)

    @property
    def ranks(self) -> tuple[int, ...]:
        """Largest rank of each adapter."""
        return tuple(
            max((one.lora_A.shape[0] for own in self._parts for one in own[number]), default=0)
            for number in range(len(self.names))
        )

    @cached_property
    def delta_norm(self) -> float:
        """Σ‖ΔW‖_F over the adapters, of all weights together: ‖s·BA‖_F² = s²·⟨BᵀB, AAᵀ⟩."""
        total = 0.0
        for number in range(len(self.names)):
            square = 0.0
            for one in (one for own in self._parts for one in own[number]):
                A, B = one.lora_A.to(torch.float64), one.lora_B.to(torch.float64)
                square += one.scaling**2 * max(0.0, float(((B.T @ B) * (A @ A.T)).sum()))
            total += math.sqrt(square)
        return total

    def base_rows(self, number: int, first: int, end: int) -> torch.Tensor:
        """Rows of the base's own weight, read from its file."""
        place = self.places[number]
        return read_rows(self._files[place.ref.file], place.ref, place.first + first, place.first + end, place.shape[1])

    def scene(self, device: str, like: SwapScene | None = None) -> SwapScene:
        """Bring the weights and the factors to `device`.

        Parameters
        ----------
        like : another scene on the same device, whose factors are shared
        """
        modules = []
        numbers = list(range(len(self.places)))
        # Side by side: what takes time is the system's, which hands out memory page by page.
        weights = in_lanes(
            lambda number: self.base_rows(number, 0, self.places[number].shape[0]).to(device), numbers, worker_count()
        )
        for number, (place, weight) in enumerate(zip(self.places, weights, strict=True)):
            if like is None:
                adapters = tuple(tuple(_moved(one, device) for one in own) for own in self._parts[number])
            else:
                adapters = like.modules[number].adapters
            modules.append(SwapModule(place.name, weight, adapters))
        return SwapScene(tuple(modules), self.base_rows, device)


def factor_bytes(parts: Sequence[SwapFactors]) -> int:
    """Bytes of the factors of one adapter in one weight."""
    return sum(one.lora_A.nbytes + one.lora_B.nbytes for one in parts) + sum(
        one.magnitude.nbytes for one in parts if one.magnitude is not None
    )


def _require_placed(adapter: Adapter, base: Base, chosen: Sequence[Delta], weights: object) -> None:
    assert isinstance(weights, dict)
    lost = [delta.module for delta in chosen if delta.module not in weights]
    if lost or not chosen:
        what = f"{len(lost)} of {len(chosen)} modules, the first {quoted(lost[0])}," if lost else "no module"
        raise CompatibilityError(
            f"{what} of {quoted(adapter.name)} {'have' if lost else 'has'} no weight of their shape in "
            f"{quoted(base.name)}.",
            hint="lora-lab check says why; --module chooses those that have.",
        )
    for delta in chosen:
        ref = weights[delta.module]
        if ref.dtype not in PLAIN_FLOATS:
            raise CompatibilityError(
                f"{quoted(ref.name)} of {quoted(base.name)} has dtype {ref.dtype}, expected a float of at least 16 "
                "bits.",
                hint="Measure on a base with plain weights.",
            )


def _place(delta: Delta, ref: TensorRef) -> Place:
    if delta.kind is DeltaKind.EXPERTS:
        height, columns = ref.shape[1], prod(ref.shape[2:])
        expert = delta.expert or 0
        return Place(f"{ref.name}[{expert}]", ref, expert * height, (height, columns), is_multiplied=False)
    is_multiplied = delta.kind is DeltaKind.LINEAR and not delta.fan_in_fan_out and len(ref.shape) == 2
    return Place(ref.name, ref, 0, (ref.shape[0], prod(ref.shape[1:])), is_multiplied)


def _oriented(delta: Delta, factors: Factors, reader: Reader, shape: tuple[int, int]) -> SwapFactors:
    """Factors whose product has the weight's own orientation."""
    turned = is_turned(delta, factors, shape, hint="Leave it out with --module.")
    magnitude = None if delta.magnitude is None else reader.tensor(delta.magnitude).reshape(-1)
    if not turned:
        return SwapFactors(factors.lora_A, factors.lora_B, factors.scaling, magnitude)
    # (B·A)ᵀ = Aᵀ·Bᵀ; DoRA's norm per output then runs down a column.
    turned_A, turned_B = factors.lora_B.T.contiguous(), factors.lora_A.T.contiguous()
    return SwapFactors(turned_A, turned_B, factors.scaling, magnitude, is_by_column=True)


def _moved(one: SwapFactors, device: str) -> SwapFactors:
    magnitude = None if one.magnitude is None else one.magnitude.to(device)
    return SwapFactors(one.lora_A.to(device), one.lora_B.to(device), one.scaling, magnitude, one.is_by_column)


def _findings(adapters: Sequence[Adapter], base: Base) -> list[Finding]:
    names = [finding for adapter in adapters for finding in base_name_findings(adapter, base)]
    return names + [
        Finding(finding.code, f"{quoted(adapter.name)}: {finding.message} It is not swapped.")
        for adapter in adapters
        for finding in outside_findings(adapter)
        if finding.code not in _HONOURED
    ]
