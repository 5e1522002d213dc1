"""A weight that is too large to be converted at once: its products, block of rows by block of rows.

Every block is worked on by one thread, several side by side, and sums are taken in the order of the rows, so that the
bits do not depend on how many threads there are.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

import torch

from lora_lab.linalg.threads import one_thread, worker_count

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future

T = TypeVar("T")
# Elements of a block: two mebibytes of float32, near a processor's second-level cache.
_BLOCK_ELEMENTS: Final = 1 << 19
_UNITS: Final = 64  # columns of a Gram matrix found at a time where it cannot be summed by blocks of rows


class Operator(Protocol):
    """A matrix W of which products can be had."""

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""

    def times(self, columns: torch.Tensor) -> torch.Tensor:
        """W·X, (m, c), for X (n, c)."""

    def transposed_times(self, columns: torch.Tensor) -> torch.Tensor:
        """Wᵀ·Y, (n, c), for Y (m, c)."""


class RowBlocks:
    """A matrix given by a function that makes blocks of its rows.

    Parameters
    ----------
    shape : (m, n)
    rows : makes the rows from the first to before the second number, (k, n), float32 or float64, the same every time;
        called from several threads
    workers : how many blocks are worked on side by side; None for as many as there are processors
    device : where blocks are multiplied; products come back to the processor
    """

    def __init__(
        self,
        shape: tuple[int, int],
        rows: Callable[[int, int], torch.Tensor],
        *,
        workers: int | None = None,
        device: str = "cpu",
    ) -> None:
        self._shape = shape
        self._rows = rows
        self._workers = workers or worker_count()
        self.device = device

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        return self._shape

    def held(self) -> RowBlocks:
        """The same matrix, all of it in memory, where it is multiplied; read once, without a second copy."""
        whole: torch.Tensor | None = None
        for first, rows in self.each(lambda first, rows: (first, rows)):
            if whole is None:
                whole = rows.new_empty(self._shape)
            whole[first : first + rows.shape[0]] = rows
        return _Held(torch.zeros(self._shape) if whole is None else whole, workers=self._workers, device=self.device)

    def on(self, device: str) -> RowBlocks:
        """The same matrix, multiplied on `device`."""
        return RowBlocks(self._shape, self._rows, workers=self._workers, device=device)

    def mapped(self, function: Callable[[int, torch.Tensor], torch.Tensor]) -> RowBlocks:
        """The matrix whose blocks of rows `function` makes of the first row and the rows of these, its shape kept."""
        return RowBlocks(self._shape, lambda first, end: function(first, self._rows(first, end)), workers=self._workers)

    def times(self, columns: torch.Tensor) -> torch.Tensor:
        """W·X, (m, c), of the type of X."""

        there = columns.to(self.device)

        def one(_first: int, rows: torch.Tensor) -> torch.Tensor:
            return (rows.to(columns.dtype) @ there).cpu()

        parts = list(self.each(one))
        return torch.cat(parts) if parts else columns.new_zeros((0, columns.shape[1]))

    def transposed_times(self, columns: torch.Tensor) -> torch.Tensor:
        """Wᵀ·Y, (n, c), of the type of Y, summed in the order of the rows."""
        total = columns.new_zeros((self._shape[1], columns.shape[1]))
        there = columns.to(self.device)

        def one(first: int, rows: torch.Tensor) -> torch.Tensor:
            return (rows.to(columns.dtype).T @ there[first : first + rows.shape[0]]).cpu()

        for part in self.each(one):
            total += part
        return total

    def gram_times(self, columns: torch.Tensor) -> torch.Tensor:
        """WᵀW·X where m ≥ n, W Wᵀ·X otherwise, (min(m, n), c), of the type of X, in the calling thread alone.

        Of a tall W every block is looked at once for both products, while it is near the processor.
        """
        if self._shape[0] < self._shape[1]:
            return self.times(self.transposed_times(columns))
        there = columns.to(self.device)
        total = torch.zeros_like(there)
        with one_thread():
            for first, end in _spans(*self._shape):
                rows = self._rows(first, end).to(device=self.device, dtype=columns.dtype)
                total.addmm_(rows.T, rows @ there)
        return total.cpu()

    def gram(self) -> torch.Tensor:
        """WᵀW where m ≥ n, W Wᵀ otherwise, float64, in the calling thread alone."""
        side = min(self._shape)
        wide = torch.float64
        total = torch.zeros((side, side), dtype=wide)
        if self._shape[0] < self._shape[1]:
            units, near = torch.eye(side, dtype=wide), self.on("cpu")  # a device may have no float64
            for first in range(0, side, _UNITS):
                total[:, first : first + _UNITS] = near.gram_times(units[:, first : first + _UNITS])
            return total
        with one_thread():
            for first, end in _spans(*self._shape):
                rows = self._rows(first, end).cpu().to(wide)
                total.addmm_(rows.T, rows)
        return total

    def each(self, work: Callable[[int, torch.Tensor], T]) -> Iterator[T]:
        """Results of `work` on every block, given its first row and its rows, in order."""

        def one(span: tuple[int, int]) -> T:
            with one_thread():
                return work(span[0], self._rows(*span).to(self.device))

        spans = _spans(*self._shape)
        if self._workers == 1 or len(spans) < 2:
            yield from map(one, spans)
            return
        ahead = self._workers + 1
        waiting: deque[Future[T]] = deque()
        with ThreadPoolExecutor(self._workers, thread_name_prefix="blocks") as pool:
            for span in spans:
                waiting.append(pool.submit(one, span))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()


class _Held(RowBlocks):
    """A matrix that is in memory, so that blocks of columns are as near as blocks of rows."""

    def __init__(self, whole: torch.Tensor, *, workers: int, device: str) -> None:
        super().__init__(
            (whole.shape[0], whole.shape[1]), lambda first, end: whole[first:end], workers=workers, device=device
        )
        self._whole = whole

    def on(self, device: str) -> RowBlocks:
        """The same matrix, on `device`."""
        return _Held(self._whole.to(device), workers=self._workers, device=device)

    def gram_times(self, columns: torch.Tensor) -> torch.Tensor:
        """As of any matrix; of a wide W by blocks of columns, each looked at once."""
        if self._shape[0] >= self._shape[1]:
            return super().gram_times(columns)
        there = columns.to(self.device)
        total = torch.zeros_like(there)
        with one_thread():
            for first, end in _spans(self._shape[1], self._shape[0]):
                part = self._whole[:, first:end].to(columns.dtype)
                total.addmm_(part, part.T @ there)
        return total.cpu()

    def gram(self) -> torch.Tensor:
        """As of any matrix; of a wide W by blocks of columns."""
        if self._shape[0] >= self._shape[1]:
            return super().gram()
        total = torch.zeros((self._shape[0], self._shape[0]), dtype=torch.float64)
        with one_thread():
            for first, end in _spans(self._shape[1], self._shape[0]):
                part = self._whole[:, first:end].cpu().to(torch.float64)
                total.addmm_(part, part.T)
        return total


def _spans(lines: int, length: int) -> list[tuple[int, int]]:
    """First and end of blocks of so many of the `lines` that a block has about two mebibytes of float32."""
    step = max(1, _BLOCK_ELEMENTS // max(1, length))
    return [(first, min(lines, first + step)) for first in range(0, lines, step)]
