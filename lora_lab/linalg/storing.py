"""Sums become rows of the stored type, and what their rounding leaves of an update is measured."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch

from lora_lab.linalg.rounding import rounded
from lora_lab.linalg.workspace import Workspace

_COUNTED_EXACTLY: Final = 1 << 24  # whole numbers in float32


@dataclass(slots=True)
class Fidelity:
    """What rounding left of an update; sums over blocks add up.

    intended_square : ‖Δ‖_F²
    realised_square : ‖W′ − W‖_F²
    inner : ⟨W′ − W, Δ⟩
    not_finite : values of W′ that are NaN or infinite; the figures are undefined then
    """

    elements: int = 0
    changed: int = 0
    intended_square: float = 0.0
    realised_square: float = 0.0
    inner: float = 0.0
    not_finite: int = 0

    def add(self, other: Fidelity) -> None:
        """Take in another block."""
        self.elements += other.elements
        self.changed += other.changed
        self.intended_square += other.intended_square
        self.realised_square += other.realised_square
        self.inner += other.inner
        self.not_finite += other.not_finite

    @property
    def is_defined(self) -> bool:
        """Whether the figures are numbers; not where W′ is not finite, or a sum exceeds its type."""
        return not self.not_finite and math.isfinite(self.intended_square + self.realised_square + self.inner)

    @property
    def intended_norm(self) -> float | None:
        """‖Δ‖_F."""
        return math.sqrt(self.intended_square) if self.is_defined else None

    @property
    def realised_norm(self) -> float | None:
        """‖W′ − W‖_F."""
        return math.sqrt(self.realised_square) if self.is_defined else None

    @property
    def changed_fraction(self) -> float | None:
        """Share of the elements whose bits changed."""
        return self.changed / self.elements if self.elements and self.is_defined else None

    @property
    def realised_cosine(self) -> float | None:
        """⟨W′ − W, Δ⟩ / (‖W′ − W‖·‖Δ‖); None when one of the two is zero."""
        if not self.is_defined:
            return None
        product = math.sqrt(self.intended_square) * math.sqrt(self.realised_square)
        return self.inner / product if product else None

    @property
    def effective_strength(self) -> float | None:
        """⟨W′ − W, Δ⟩ / ‖Δ‖²: the strength that arrives; None for a zero update."""
        return self.inner / self.intended_square if self.intended_square and self.is_defined else None


def stored_rows(
    rows: torch.Tensor,
    moved: torch.Tensor,
    dtype: torch.dtype,
    *,
    generator: torch.Generator | None = None,
    space: Workspace | None = None,
    out: torch.Tensor | None = None,
    is_measured: bool = True,
) -> tuple[torch.Tensor, Fidelity]:
    """Round W + Δ once.

    Parameters
    ----------
    rows : (n, in) of the stored type, W
    moved : (n, in) float64, W + Δ; holds anything afterwards
    dtype : type of the result
    generator : for stochastic rounding; None rounds to nearest
    space : for what lies between, as its buffers "before", "start", "step", "real" and "changed"
    out : (n, in) of `dtype`, where the result goes; may be `rows`
    is_measured : whether the figures are wanted

    Returns
    -------
    (n, in) of `dtype`, and what became of the update; the figures are float32 sums of one block, added in float64
    """
    space = space or Workspace()
    wide = torch.float64 if torch.float64 in (rows.dtype, dtype) else torch.float32
    if is_measured:  # before `out`, which may be `rows`, is written
        before = space.converted("before", rows, torch.float64, is_copy=True)
        start = space.converted("start", rows, wide, is_copy=True)
    if out is None:
        out = torch.empty_like(moved, dtype=dtype)
    out.copy_(moved if generator is None else rounded(moved, dtype, generator=generator))
    if not is_measured:
        return out, Fidelity()
    step = space.converted("step", moved.sub_(before), wide)
    real = space.converted("real", out, wide, is_copy=True).sub_(start)
    flat, intended = real.view(-1), step.reshape(-1)
    # As numbers and summed: counting them asks at every element, which half of them answer otherwise than guessed.
    is_changed = torch.ne(real, 0, out=space.take("changed", tuple(real.shape), torch.float32, real.device))
    return out, Fidelity(
        elements=flat.numel(),
        changed=int(is_changed.sum(dtype=None if flat.numel() <= _COUNTED_EXACTLY else torch.float64)),
        intended_square=float(intended.dot(intended)),
        realised_square=float(flat.dot(flat)),
        inner=float(flat.dot(intended)),
    )
