"""From a delta to its two matrices: orientation, kernels, experts, diagonals and finiteness settled here once."""

from __future__ import annotations

from contextlib import contextmanager
from math import prod
from typing import TYPE_CHECKING

from lora_lab.domain.adapter import DeltaKind
from lora_lab.errors import NumericalError, quoted
from lora_lab.extension.contracts import Factors
from lora_lab.storage.holding import LocalFiles
from lora_lab.storage.reading import read_held, read_tensors
from lora_lab.storage.rows import read_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import torch

    from lora_lab.domain.adapter import Delta
    from lora_lab.domain.tensors import TensorRef
    from lora_lab.storage.holding import Files


class FactorReader:
    """Reads factors, which are in local files, and tensors of models, wherever those are; nothing is kept.

    Parameters
    ----------
    files : gives the tensors of models; None reads local files alone
    allow_nonfinite : whether factors may hold NaN or infinity
    """

    def __init__(self, files: Files | None = None, *, allow_nonfinite: bool = False) -> None:
        self._files: Files = files or LocalFiles()
        self._allow_nonfinite = allow_nonfinite

    def tensor(self, ref: TensorRef) -> torch.Tensor:
        """Read one tensor as stored."""
        with self._files.hold(ref) as held:
            return read_held(held)

    @contextmanager
    def rows_of(self, ref: TensorRef) -> Iterator[Callable[[int, int], torch.Tensor]]:
        """Give a function that reads rows of a tensor, whose file is open and watched meanwhile.

        Raises
        ------
        FileFormatError
            the file changed since its header was read.
        """
        with self._files.hold(ref) as held:

            def rows(first: int, end: int) -> torch.Tensor:
                return read_rows(held.descriptor, held.ref, first, end, prod(ref.shape[1:]))

            yield rows

    def factors(self, delta: Delta) -> Factors:
        """Read the two matrices of `delta`.

        Raises
        ------
        NumericalError
            a factor holds NaN or infinity, and may not; module, tensor and count are named.
        FileFormatError
            the file changed since its header was read.
        """
        return next(self.factors_of((delta,)))[1]

    def factors_of(self, deltas: Sequence[Delta]) -> Iterator[tuple[Delta, Factors]]:
        """Read the matrices of many deltas, in order, each file opened once.

        Experts that follow each other share their tensors, which are then read once.

        Yields
        ------
        each delta with its factors; at most one tensor of each role is held beyond what the caller keeps
        """
        wanted = [ref for group in _groups(deltas) for ref in _refs(group[0])]
        tensors = read_tensors(wanted)
        try:
            for group in _groups(deltas):
                held = [next(tensors)[1] for _ in _refs(group[0])]
                for delta in group:
                    yield delta, _factors(delta, held, allow_nonfinite=self._allow_nonfinite)
        finally:
            tensors.close()


def _groups(deltas: Sequence[Delta]) -> Iterator[list[Delta]]:
    """Runs of deltas that are cut out of the same tensors."""
    group: list[Delta] = []
    for delta in deltas:
        if group and _refs(group[0]) != _refs(delta):
            yield group
            group = []
        group.append(delta)
    if group:
        yield group


def _refs(delta: Delta) -> tuple[TensorRef, ...]:
    refs = (delta.lora_A, delta.lora_B)
    return refs if delta.diagonal is None else (*refs, delta.diagonal)


def _factors(delta: Delta, tensors: list[torch.Tensor], *, allow_nonfinite: bool) -> Factors:
    lora_A, lora_B, *diagonals = (
        _usable(delta, ref, tensor, allow_nonfinite=allow_nonfinite)
        for ref, tensor in zip(_refs(delta), tensors, strict=True)
    )
    if delta.kind is DeltaKind.CONV:
        lora_A = lora_A.flatten(1)  # (r, in·k…)
        lora_B = _block_diagonal(lora_B.flatten(1), delta.groups)  # (out, r)
    if delta.kind is DeltaKind.EXPERTS:
        expert = delta.expert or 0
        lora_A = lora_A.reshape(delta.experts, delta.rank, -1)[expert]  # (r, in), expert-major
        lora_B = lora_B.reshape(-1, delta.rank, delta.experts)[:, :, expert]  # (out, r), rank-major
    if delta.diagonal is not None:
        lora_A = diagonals[0].double()[:, None] * lora_A.double()  # diag(d)·A
    is_transposed = delta.kind is DeltaKind.EMBEDDING or delta.fan_in_fan_out
    return Factors(lora_A, lora_B, delta.scaling, is_transposed)


def _block_diagonal(lora_B: torch.Tensor, groups: int) -> torch.Tensor:
    """Full B of a grouped convolution, (out, r), from its (out, r/groups): group g sees only its own rows of A."""
    if groups == 1:
        return lora_B
    rows, rank = lora_B.shape[0] // groups, lora_B.shape[1]
    whole = lora_B.new_zeros(lora_B.shape[0], rank * groups)
    for group in range(groups):
        of_rows, of_ranks = slice(group * rows, (group + 1) * rows), slice(group * rank, (group + 1) * rank)
        whole[of_rows, of_ranks] = lora_B[of_rows]
    return whole


def _usable(delta: Delta, ref: TensorRef, tensor: torch.Tensor, *, allow_nonfinite: bool) -> torch.Tensor:
    """`tensor`, when it is finite; eight-bit floats, which have no arithmetic, as float32."""
    import torch

    if ref.dtype.bits == 8:
        tensor = tensor.to(torch.float32)
    if allow_nonfinite:
        return tensor
    # A sum is finite only if every element is, unless it overflows; then the elements themselves decide.
    if not torch.isfinite(tensor.sum(dtype=torch.float64)):
        bad = int((~torch.isfinite(tensor)).sum())
        if bad:
            held = "1 value that is" if bad == 1 else f"{bad} values that are"
            raise NumericalError(
                f"The factor {quoted(ref.name)} of {quoted(delta.module)} in {quoted(ref.file.path)} holds {held} "
                "NaN or infinite, expected finite numbers.",
                hint="The training diverged, or the file is damaged.",
            )
    return tensor
