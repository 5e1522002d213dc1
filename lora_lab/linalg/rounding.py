"""The one rounding of a changed weight into its stored type: to nearest, or to either neighbour by chance."""

from __future__ import annotations

import hashlib
from enum import StrEnum

import torch


class Rounding(StrEnum):
    """How a sum becomes a number of the stored type."""

    NEAREST = "nearest"  # ties to even, IEEE 754
    STOCHASTIC = "stochastic"  # to one of the two neighbours, so that the mean is the sum


def rounded(values: torch.Tensor, dtype: torch.dtype, *, generator: torch.Generator | None = None) -> torch.Tensor:
    """Round `values` once into `dtype`.

    Without a generator to nearest, ties to even. With one, a value x between neighbours a < b of the stored type
    becomes b with probability (x − a)/(b − a), so that E[result] = x: small updates survive in the mean where rounding
    to nearest would swallow each of them. Source: Croci et al., Royal Society Open Science 9 (2022), section 2.

    Parameters
    ----------
    values : any shape, float32 or float64
    dtype : float64, float32, float16 or bfloat16
    generator : of the device of `values`

    Returns
    -------
    the shape of `values`, of `dtype`; what exceeds the type's range is infinite, as the hardware rounds it

    Examples
    --------
    >>> rounded(torch.tensor([1.0, 1.001]), torch.bfloat16)
    tensor([1., 1.], dtype=torch.bfloat16)
    """
    nearest = values.to(dtype)
    if generator is None or dtype == values.dtype:
        return nearest
    back = nearest.to(values.dtype)
    rest = values - back  # exact: both lie within one step of the coarser type
    towards = torch.copysign(torch.full_like(back, torch.inf), rest).to(dtype)
    other = torch.nextafter(nearest, towards)
    gap = (other.to(values.dtype) - back).abs()
    chance = torch.rand(values.shape, generator=generator, dtype=torch.float32, device=values.device)
    moves = (chance * gap < rest.abs()) & torch.isfinite(other)
    return torch.where(moves, other, nearest)


def block_generator(seed: int, name: str, block: int, device: str = "cpu") -> torch.Generator:
    """Make the generator of one block of one tensor: the same whatever was drawn before, and wherever.

    Examples
    --------
    >>> torch.rand(1, generator=block_generator(0, "w", 3)) == torch.rand(1, generator=block_generator(0, "w", 3))
    tensor([True])
    """
    digest = hashlib.sha256(f"{seed}\0{block}\0{name}".encode("utf-8", "surrogatepass")).digest()
    return torch.Generator(device=device).manual_seed(int.from_bytes(digest[:7], "little"))
