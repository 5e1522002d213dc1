"""The base behind adapters whose change is known with it alone: DoRA rescales its rows, PiSSA moved it before training.

DoRA's W′ − W has the rank of W, so that no factors hold it; its rows are made where they are wanted. PiSSA began from
W − U_r S_r V_rᵀ, so that against W its change is scaling·B·A − U_r S_r V_rᵀ, factors of twice the rank
(:mod:`~lora_lab.analyses.effective`).
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from lora_lab.analyses.effective import moved_factors
from lora_lab.analyses.scope import is_moved
from lora_lab.analyses.trained_on import base_name_findings
from lora_lab.domain.dtypes import PLAIN_FLOATS
from lora_lab.domain.matching import match_modules
from lora_lab.domain.quantised import require_plain
from lora_lab.domain.report import Finding
from lora_lab.errors import CompatibilityError, quoted
from lora_lab.extension.changes import Change
from lora_lab.extension.contracts import Factors
from lora_lab.formats.factors import FactorReader
from lora_lab.linalg.blocked import RowBlocks
from lora_lab.linalg.changes import rescaled
from lora_lab.linalg.spectra import Pair
from lora_lab.operations.joining import joints_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import torch

    from lora_lab.domain.adapter import Adapter, Delta
    from lora_lab.domain.base import Base
    from lora_lab.domain.tensors import TensorRef
    from lora_lab.extension.contracts import Reader
    from lora_lab.operations.combine_options import CombineOptions
    from lora_lab.operations.joining import Joint


class Behind:
    """Makes the true changes of some adapters out of their base.

    Raises
    ------
    CompatibilityError
        the base has no weights, is quantised, or lacks a module of an adapter that needs it.
    """

    def __init__(self, base: Base, adapters: Sequence[Adapter], joints: Sequence[Joint], reader: Reader) -> None:
        self._reader = reader
        self._base = base
        self._moved = frozenset(place for place, adapter in enumerate(adapters) if is_moved(adapter))
        self._weights: dict[tuple[int, str], TensorRef] = {}
        needing = [place for place, adapter in enumerate(adapters) if place in self._moved or _is_dora(adapter.deltas)]
        self.findings = list(_findings(base, [adapters[place] for place in needing]))
        if needing:
            require_plain(base, hint="Give the model that it was made from.")
        for place in needing:
            match = match_modules(adapters[place], base)
            for delta in (joint.delta_of(place) for joint in joints if place in joint.places):
                ref = match.weights.get(delta.module)
                if ref is None or ref.dtype not in PLAIN_FLOATS:
                    raise _no_weight(adapters[place], base, delta, ref)
                self._weights[place, delta.module] = ref

    def weights(self, joints: Sequence[Joint]) -> list[TensorRef]:
        """Those that the changes of some modules are made with, in the order of the modules."""
        wanted = [(place, joint.delta_of(place).module) for joint in joints for place in joint.places]
        return [self._weights[one] for one in wanted if one in self._weights]

    def factors(self, place: int, delta: Delta, factors: Factors) -> Factors:
        """Those of the change against the base as it is: other ones for PiSSA."""
        if place not in self._moved:
            return factors
        with self._rows(place, delta, factors) as rows:
            shape = (factors.lora_B.shape[0], factors.lora_A.shape[1])
            lora_A, lora_B = moved_factors(
                factors.lora_A, factors.lora_B, factors.scaling, RowBlocks(shape, rows), delta.rank
            )
        return Factors(lora_A, lora_B, 1.0, factors.is_transposed)

    @contextmanager
    def change(self, place: int, delta: Delta, factors: Factors, magnitude: torch.Tensor) -> Iterator[Change]:
        """What DoRA does to the weight of a module, whose file is open meanwhile."""
        pair = Pair(delta.module, factors.lora_A, factors.lora_B, factors.scaling)
        with self._rows(place, delta, factors) as rows:
            yield Change(rescaled(pair, magnitude, rows), factors, magnitude)

    @contextmanager
    def _rows(self, place: int, delta: Delta, factors: Factors) -> Iterator[Callable[[int, int], torch.Tensor]]:
        """Rows of the weight as lora_B @ lora_A has them: one that is stored the other way round is held."""
        ref = self._weights[place, delta.module]
        if factors.is_transposed:
            whole = self._reader.tensor(ref).T
            yield lambda first, end: whole[first:end]
            return
        with self._reader.rows_of(ref) as rows:
            yield rows


def weights_behind(base: Base, adapters: Sequence[Adapter], options: CombineOptions) -> tuple[list[TensorRef], bool]:
    """The weights of a base that combining some adapters reads, in the order in which it does.

    Returns
    -------
    the weights, each as often as it is read in one pass; whether every pass reads them anew, as the rows of DoRA are

    Raises
    ------
    AdapterError, CompatibilityError
        as :func:`~lora_lab.operations.combine.combine`, of what headers say.
    """
    joints = joints_of(adapters, options, has_base=True)
    behind = Behind(base, adapters, joints, FactorReader())
    return behind.weights(joints), any(_is_dora(adapter.deltas) for adapter in adapters)


def _is_dora(deltas: Sequence[Delta]) -> bool:
    return any(delta.magnitude is not None for delta in deltas)


def _no_weight(adapter: Adapter, base: Base, delta: Delta, ref: TensorRef | None) -> CompatibilityError:
    why = "has no weight of its shape" if ref is None else f"stores it as {ref.dtype.value}, which is no plain float,"
    return CompatibilityError(
        f"{quoted(base.name)} {why} for {quoted(delta.module)} of {quoted(adapter.name)}, whose change is known with "
        "its base alone.",
        hint="lora-lab check ADAPTER --base BASE says which modules land.",
    )


def _findings(base: Base, needing: Sequence[Adapter]) -> Iterator[Finding]:
    if not needing:
        yield Finding("base_unused", f"No adapter needs {quoted(base.name)}: their factors say what they do.")
    for adapter in needing:
        yield from base_name_findings(adapter, base)
        if _is_dora(adapter.deltas):
            yield Finding(
                "true_change",
                f"DoRA of {quoted(adapter.name)} is taken for what it really does to {quoted(base.name)}, W′ − W, of "
                "full rank: the relative error says what the factors leave out.",
            )
        else:
            yield Finding(
                "pissa",
                f"PiSSA of {quoted(adapter.name)} is counted from {quoted(base.name)} as it was before training, "
                "scaling·B·A − U_r S_r V_rᵀ; on any other base it means nothing.",
            )
