"""A full fine-tune against noise: W_ft − W_0, tensor by tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from lora_lab.domain.modules import select_modules
from lora_lab.domain.progress import stop_if_cancelled
from lora_lab.domain.report import Finding
from lora_lab.errors import CompatibilityError, NumericalError, quoted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch

    from lora_lab.domain.base import Base
    from lora_lab.domain.tensors import TensorRef
    from lora_lab.extension.contracts import AnalysisContext

# Elements of a difference up to which its singular values come from the SVD of all of it: 32 MiB of float64.
SVD_ELEMENTS: Final = 1 << 22
# Elements of one float64 block of rows of a larger one.
_BLOCK_ELEMENTS: Final = 1 << 21


def pairs_of(model: Base, base: Base, globs: Sequence[str]) -> list[tuple[str, TensorRef, TensorRef]]:
    """List (module, fine-tuned tensor, base tensor) of every matrix that both checkpoints hold in one shape.

    Raises
    ------
    CompatibilityError
        they share none that matches.
    """
    modules = {name: name.removesuffix(".weight") for name in model.tensors}
    chosen = set(select_modules(list(modules.values()), globs))
    pairs = [
        (modules[name], tensor, base.tensors[name])
        for name, tensor in model.tensors.items()
        if modules[name] in chosen and name in base.tensors and _is_matrix(tensor, base.tensors[name])
    ]
    if not pairs:
        raise CompatibilityError(
            f"The checkpoints {quoted(model.name)} and {quoted(base.name)} share no matrix of one name and shape"
            + (f" that matches {', '.join(map(quoted, globs))}." if globs else ".")
        )
    return pairs


def rows(pairs: Sequence[tuple[str, TensorRef, TensorRef]], context: AnalysisContext) -> Iterator[dict[str, Any]]:
    """Yield one row for each pair: the singular values of W_ft − W_0, the noise level and what exceeds it."""
    for module, tuned, original in pairs:
        stop_if_cancelled(context.observer)
        spectrum = difference_spectrum(
            context.reader.tensor(tuned), context.reader.tensor(original), module, device=context.device
        )
        yield _row(module, tuned.shape, spectrum, context.parameters["quantile"])


def difference_spectrum(tuned: torch.Tensor, original: torch.Tensor, module: str, *, device: str) -> list[float]:
    """Compute all singular values of ``tuned - original``.

    Up to 4 Mi elements: LAPACK's SVD of the float64 difference, errors of order ε·σ₁. Beyond: the eigenvalues of the
    Gram matrix of the smaller side, summed in float64 over blocks of rows, σ = √max(λ, 0). Its errors are of order
    N·ε·σ₁²/(2σ): relative 1e-9 for σ ≥ 1e-2·σ₁, and nothing can be told of σ < √(N·ε)·σ₁ ≈ 1e-6·σ₁. The bulk of a
    fine-tune's noise lies far above that.

    Parameters
    ----------
    tuned, original : (out, in), float of any width
    module : what an error calls it
    device : cpu, cuda:N or mps; where there is no float64 the processor computes

    Returns
    -------
    min(out, in) values, descending

    Notes
    -----
    Memory beyond the two tensors: 32 MiB, or N² float64 with N = min(out, in).
    """
    import torch

    from lora_lab.linalg.device import has_float64
    from lora_lab.linalg.threads import one_thread

    where = device if has_float64(device) else "cpu"
    with one_thread():
        if tuned.numel() <= SVD_ELEMENTS:
            difference = _finite(_difference(tuned, original, where), module)
            return list(torch.linalg.svdvals(difference).tolist()) if difference.any() else [0.0] * min(tuned.shape)
        gram = _finite(_gram(tuned, original, where), module)
        eigenvalues = torch.linalg.eigvalsh(gram).flip(0).clamp_min(0.0)
        return list(eigenvalues.sqrt().tolist())


def outside_findings(model: Base, base: Base) -> Iterator[Finding]:
    """Yield a finding for what the two checkpoints do not share."""
    for name, tensor in model.tensors.items():
        other = base.tensors.get(name)
        if other is None:
            yield Finding("only_in_model", f"The base has no tensor {quoted(name)}.", name)
        elif other.shape != tensor.shape:
            yield Finding(
                "shape_mismatch",
                f"The tensor {quoted(name)} has shape {tensor.shape}, in the base {other.shape}: it is left out.",
                name,
            )
    for name in base.tensors:
        if name not in model.tensors:
            yield Finding("only_in_base", f"The model has no tensor {quoted(name)}.", name)


def _row(module: str, shape: tuple[int, ...], spectrum: list[float], quantile: float) -> dict[str, Any]:
    from lora_lab_rmt.factored import excess_energy
    from lora_lab_rmt.marchenko_pastur import edge, noise_level, threshold

    outputs, inputs = shape
    noise = noise_level(spectrum, (outputs, inputs))
    row: dict[str, Any] = {"module": module, "shape": list(shape), "learnt": None, "above_edge": None}
    row |= {"excess_energy": None, "singular_values": spectrum, "edge": None, "threshold": None, "noise": noise}
    if noise is not None:
        level, limit = edge(noise, (outputs, inputs)), threshold(noise, (outputs, inputs), quantile)
        learnt = sum(value > limit for value in spectrum)
        row |= {"learnt": learnt, "above_edge": sum(value > level for value in spectrum), "edge": level}
        row |= {"threshold": limit, "excess_energy": excess_energy(spectrum, [level] * learnt, learnt)}
    return row


def _is_matrix(tuned: TensorRef, original: TensorRef) -> bool:
    both_float = tuned.dtype.is_float and original.dtype.is_float
    return both_float and tuned.shape == original.shape and len(tuned.shape) == 2 and min(tuned.shape) > 0


def _difference(tuned: torch.Tensor, original: torch.Tensor, device: str) -> torch.Tensor:
    import torch

    return tuned.to(device).to(torch.float64) - original.to(device).to(torch.float64)


def _gram(tuned: torch.Tensor, original: torch.Tensor, device: str) -> torch.Tensor:
    """DᵀD or DDᵀ of the difference D, whichever is smaller, over blocks of rows of its longer side."""
    import torch

    if tuned.shape[0] < tuned.shape[1]:
        tuned, original = tuned.T, original.T
    long, short = tuned.shape
    gram = torch.zeros((short, short), dtype=torch.float64, device=device)
    step = max(1, _BLOCK_ELEMENTS // short)
    for start in range(0, long, step):
        block = _difference(tuned[start : start + step], original[start : start + step], device)
        gram += block.T @ block
    return gram


def _finite(matrix: torch.Tensor, module: str) -> torch.Tensor:
    import torch

    if not torch.isfinite(matrix).all():
        raise NumericalError(f"The weights of {quoted(module)} hold NaN or infinity, expected finite numbers.")
    return matrix
