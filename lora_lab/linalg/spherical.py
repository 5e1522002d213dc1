"""Interpolation of updates along the sphere: the weights of a sum, worked out from inner products alone.

With ⟨ΔW_i, ΔW_j⟩ = s_i s_j·tr((B_iᵀB_j)(A_j A_iᵀ)) no ΔW is formed, and whatever interpolates between them is a sum
Σ cᵢΔWᵢ whose coefficients depend on these numbers only.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import torch

from lora_lab.errors import LoraLabError, NumericalError, quoted
from lora_lab.linalg.threads import one_thread

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_lab.linalg.spectra import Pair

# Beyond this cosine two updates count as parallel, and the straight line between them is taken.
_PARALLEL: Final = 0.9995
# A mean direction shorter than this is no direction.
_BALANCED: Final = 1e-8


def gram_matrix(pairs: Sequence[Pair]) -> torch.Tensor:
    """Compute ⟨ΔW_i, ΔW_j⟩ of updates of one shape.

    Returns
    -------
    (n, n) float64, symmetric

    Raises
    ------
    NumericalError
        a factor holds NaN or infinity, or a product exceeds the range of float64.

    Notes
    -----
    O((out + in)·r²) time for each of n(n + 1)/2 pairs.

    Examples
    --------
    >>> from lora_lab.linalg.spectra import Pair
    >>> gram_matrix([Pair("q", torch.ones(1, 3), torch.ones(2, 1), 2.0)])
    tensor([[24.]], dtype=torch.float64)
    """
    wide = [
        (pair.lora_B.to("cpu", torch.float64) * pair.scaling, pair.lora_A.to("cpu", torch.float64)) for pair in pairs
    ]
    gram = torch.zeros((len(pairs), len(pairs)), dtype=torch.float64)
    with one_thread():
        for i, (B_i, A_i) in enumerate(wide):
            for j, (B_j, A_j) in enumerate(wide[: i + 1]):
                gram[i, j] = gram[j, i] = ((B_i.T @ B_j) * (A_i @ A_j.T)).sum()
    if not torch.isfinite(gram).all():
        raise NumericalError(
            f"The factors of {quoted(pairs[0].name)} hold NaN or infinity, or their product exceeds the range of "
            "float64."
        )
    return gram


def slerp_coefficients(gram: torch.Tensor, t: float) -> list[float]:
    """Weights of the arc from ΔW₁ to ΔW₂: sin((1 − t)θ)/sin θ and sin(tθ)/sin θ, θ the angle between them.

    The two are as they are, not brought to one length; of nearly parallel, opposite or zero ones 1 − t and t are taken.
    Source: Shoemake, SIGGRAPH 1985, equation 3; applied to weights by mergekit's ``slerp``.

    Parameters
    ----------
    gram : (2, 2) of :func:`gram_matrix`
    t : 0 gives the first, 1 the second

    Examples
    --------
    >>> slerp_coefficients(torch.eye(2, dtype=torch.float64), 0.5) == [math.sin(math.pi / 4)] * 2
    True
    """
    if gram.shape != (2, 2):
        raise LoraLabError(
            f"slerp goes from one adapter to another, got {gram.shape[0]}, expected 2.",
            hint="multislerp takes any number.",
        )
    size = math.sqrt(float(gram[0, 0])) * math.sqrt(float(gram[1, 1]))
    cosine = float(gram[0, 1]) / size if size > 0.0 else 1.0
    if abs(cosine) > _PARALLEL:
        return [1.0 - t, t]
    theta = math.acos(cosine)
    return [math.sin((1.0 - t) * theta) / math.sin(theta), math.sin(t * theta) / math.sin(theta)]


def multislerp_coefficients(gram: torch.Tensor, weights: Sequence[float]) -> list[float]:
    """Weights of the mean direction at the mean length: Σ wᵢ‖ΔWᵢ‖ · u/‖u‖ with u = Σ wᵢΔWᵢ/‖ΔWᵢ‖.

    The weights are divided by their sum. mergekit's ``multislerp`` goes from there along the sphere by the weighted
    mean of the tangents at u, which is zero at this very point, so that the two are one. A zero update counts for
    nothing in the direction.

    Raises
    ------
    LoraLabError
        the weights sum to zero, or the directions cancel.

    Examples
    --------
    >>> [round(one, 12) for one in multislerp_coefficients(4 * torch.eye(2, dtype=torch.float64), [1.0, 1.0])]
    [0.707106781187, 0.707106781187]
    """
    whole = math.fsum(weights)
    if whole == 0.0:
        raise LoraLabError("The strengths sum to zero, expected weights of a mean.")
    shares = [weight / whole for weight in weights]
    norms = gram.diagonal().clamp(min=0.0).sqrt()
    units = torch.tensor(
        [share / size if size > 0.0 else 0.0 for share, size in zip(shares, norms.tolist(), strict=True)],
        dtype=torch.float64,
    )
    if not units.any():
        return [0.0] * len(shares)
    length = math.sqrt(max(0.0, float(units @ gram @ units)))
    if length < _BALANCED:
        raise LoraLabError(
            "The weighted directions of the updates cancel, so that there is no direction between them.",
            hint="Choose other strengths.",
        )
    size = math.fsum(share * norm for share, norm in zip(shares, norms.tolist(), strict=True))
    return [float(unit) * size / length for unit in units]
