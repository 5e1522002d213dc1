"""How much of a weight lies in given directions: ‖UᵀWV‖_F, from one pass over W.

Section 7.3 of arXiv 2106.09685 compares ‖ΔW‖_F with ‖UᵀWV‖_F, U and V being the leading singular directions of ΔW, of
W itself, or random.
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from lora_lab.linalg.blocked import RowBlocks


class Projection(NamedTuple):
    """What one pass over W found.

    norm : ‖W‖_F
    core : (r, r) float64, UᵀWV
    """

    norm: float
    core: torch.Tensor


def project(weight: RowBlocks, U: torch.Tensor, V: torch.Tensor) -> Projection:
    """Compute UᵀWV and ‖W‖_F, each block of W being looked at once.

    Parameters
    ----------
    weight : W, (m, n), by blocks of rows, float32 or float64
    U : (m, r)
    V : (n, r)

    Notes
    -----
    Products of a block are taken in its own type and summed over blocks in float64: with float32 blocks the error is of
    order 1e-7·‖W‖_F for orthonormal U and V. O(m·n·r) time.

    Examples
    --------
    >>> from lora_lab.linalg.blocked import RowBlocks
    >>> W = torch.diag(torch.tensor([3.0, 4.0]))
    >>> found = project(RowBlocks((2, 2), lambda first, end: W[first:end]), torch.eye(2)[:, :1], torch.eye(2)[:, :1])
    >>> found.norm, found.core.item()
    (5.0, 3.0)
    """
    narrow: dict[torch.dtype, tuple[torch.Tensor, torch.Tensor]] = {}

    def one(first: int, rows: torch.Tensor) -> tuple[float, torch.Tensor]:
        if rows.dtype not in narrow:
            narrow[rows.dtype] = (U.to(rows.device, rows.dtype), V.to(rows.device, rows.dtype))
        left, right = narrow[rows.dtype]
        flat = rows.reshape(-1)
        part = left[first : first + rows.shape[0]].T @ (rows @ right)  # (r, n)(n, r)
        return float(flat.dot(flat)), part.cpu().to(torch.float64)

    square = 0.0
    core = torch.zeros((U.shape[1], V.shape[1]), dtype=torch.float64)
    for part_square, part in weight.each(one):
        square += part_square
        core += part
    return Projection(math.sqrt(square), core)


def random_norm(norm: float, rank: int, shape: tuple[int, int]) -> float:
    """Root mean square of ‖UᵀWV‖_F for U and V uniformly random: ‖W‖_F·r/√(m·n).

    E‖UᵀWV‖² = Σ_ij E(uᵢᵀWvⱼ)², and each of the r² terms is ‖W‖²/(m·n), uᵢ and vⱼ being uniform on their spheres.

    Parameters
    ----------
    norm : ‖W‖_F
    shape : (m, n) of W

    Examples
    --------
    >>> round(random_norm(61.95, 4, (12288, 12288)), 4)
    0.0202
    """
    return norm * rank / math.sqrt(shape[0] * shape[1])


def random_directions(side: int, rank: int, *, seed: int, name: str) -> torch.Tensor:
    """Draw an orthonormal basis of a uniformly random subspace, (side, rank) float64.

    The draw depends on `seed` and `name` alone, not on what was drawn before.

    Examples
    --------
    >>> Q = random_directions(10, 3, seed=0, name="q/1")
    >>> torch.allclose(Q.T @ Q, torch.eye(3, dtype=torch.float64))
    True
    """
    digest = hashlib.sha256(f"{seed}\0{name}".encode("utf-8", "surrogatepass")).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    basis: torch.Tensor = torch.linalg.qr(torch.randn((side, rank), generator=generator, dtype=torch.float64)).Q
    return basis
