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
        """The same matrix, all of it in memory."""
        parts = list(self.each(lambda _first, rows: rows))
        whole = torch.cat(parts) if parts else torch.zeros(self._shape)
        return RowBlocks(self._shape, lambda first, end: whole[first:end], workers=self._workers, device=self.device)

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

    def each(self, work: Callable[[int, torch.Tensor], T]) -> Iterator[T]:
        """Results of `work` on every block, given its first row and its rows, in order."""
        step = max(1, _BLOCK_ELEMENTS // max(1, self._shape[1]))

        def one(first: int) -> T:
            with one_thread():
                return work(first, self._rows(first, min(self._shape[0], first + step)).to(self.device))

        firsts = range(0, self._shape[0], step)
        if self._workers == 1 or len(firsts) < 2:
            yield from map(one, firsts)
            return
        ahead = self._workers + 1
        waiting: deque[Future[T]] = deque()
        with ThreadPoolExecutor(self._workers, thread_name_prefix="blocks") as pool:
            for first in firsts:
                waiting.append(pool.submit(one, first))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
