"""The same spectra on a GPU: factors of one shape as one batch, by Cholesky's QR done twice.

With G = XᵀX = R₁ᵀR₁ (Cholesky) and Q = X R₁⁻¹, the second pass QᵀQ = R₂ᵀR₂ gives X = (Q R₂⁻¹)(R₂R₁), and R = R₂R₁ is as
accurate as Householder's when QᵀQ was near the identity, which is checked. A matrix that fails the check, one too
ill-conditioned for its Gram matrix, goes to Householder's QR on the processor. The cores' SVD runs there too, one on
each processor: small SVDs on a GPU are slower. Source: Yamamoto, Nakatsukasa, Yanagisawa and Fukaya, ETNA 44 (2015).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

from lora_lab.linalg.spectra import Pair, core_singular_values, triangular_factor
from lora_lab.linalg.threads import in_lanes, worker_count

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

# Float64 elements of one window: 512 MiB on the device, and as much again for Q.
_WINDOW_ELEMENTS: Final = 1 << 26
# ‖QᵀQ − 1‖ at most this: then the first pass was accurate enough for the second to finish the work.
_NEARLY_ORTHONORMAL: Final = 0.1


def stream_in_batches(pairs: Iterable[Pair], *, device: str) -> Iterator[tuple[Pair, torch.Tensor]]:
    """Yield each pair with its singular values, in the order given, a window of pairs at a time."""
    remaining = iter(pairs)
    for first in remaining:
        window = [first]
        held = _elements(first)
        for pair in remaining:
            window.append(pair)
            held += _elements(pair)
            if held > _WINDOW_ELEMENTS:
                break
        factors_B = triangular_factors([pair.lora_B for pair in window], device=device)
        factors_A = triangular_factors([pair.lora_A.T for pair in window], device=device)
        cores = list(zip(window, factors_B, factors_A, strict=True))
        yield from zip(window, in_lanes(_of_core, cores, worker_count()), strict=True)


def _of_core(core: tuple[Pair, torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Singular values of s·R_b·R_aᵀ."""
    pair, R_b, R_a = core
    return core_singular_values(pair.scaling * (R_b @ R_a.T), pair.name)


def triangular_factors(matrices: Sequence[torch.Tensor], *, device: str) -> list[torch.Tensor]:
    """Compute R of a thin QR of every matrix, those of one shape as one batch on `device`.

    Parameters
    ----------
    matrices : each (n, r), float of any width
    device : one that computes in float64

    Returns
    -------
    for each, in order, (min(n, r), r) float64 on the processor
    """
    factors: dict[int, torch.Tensor] = {}
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, matrix in enumerate(matrices):
        groups.setdefault(tuple(matrix.shape), []).append(index)
    for (rows, rank), members in groups.items():
        if rows > rank:
            on_device = [matrices[index].to(device).to(torch.float64) for index in members]
            R, is_accurate = _cholesky_qr_twice(torch.stack(on_device))
            factors.update((index, R[place]) for place, index in enumerate(members) if is_accurate[place])
    left = sorted(set(range(len(matrices))) - factors.keys())
    if left:
        found = in_lanes(triangular_factor, [matrices[index] for index in left], worker_count())
        factors.update(zip(left, found, strict=True))
    return [factors[index] for index in range(len(matrices))]


def _cholesky_qr_twice(stack: torch.Tensor) -> tuple[torch.Tensor, list[bool]]:
    """R of every (n, r) matrix of a (b, n, r) stack, on the processor, and which of them may be relied upon."""
    identity = torch.eye(stack.shape[2], dtype=stack.dtype, device=stack.device)
    R_1, failed_1 = torch.linalg.cholesky_ex(_gram(stack), upper=True)
    Q = torch.linalg.solve_triangular(R_1, stack, upper=True, left=False)  # (b, n, r)
    gram = _gram(Q)
    R_2, failed_2 = torch.linalg.cholesky_ex(gram, upper=True)
    distance = torch.linalg.matrix_norm(gram - identity)  # (b,)
    # A comparison with NaN is false: what overflowed or was singular is not relied upon either.
    is_accurate = (distance <= _NEARLY_ORTHONORMAL) & (failed_1 == 0) & (failed_2 == 0)
    return (R_2 @ R_1).cpu(), is_accurate.tolist()


def _gram(stack: torch.Tensor) -> torch.Tensor:
    return stack.mT @ stack


def _elements(pair: Pair) -> int:
    return pair.lora_A.numel() + pair.lora_B.numel()
