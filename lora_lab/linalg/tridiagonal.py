"""Eigenvectors of S Sᵀ from processes of their own, each with a BLAS of one thread.

A symmetric matrix is decomposed in three steps: to tridiagonal form, the eigenvectors of that, and multiplying both.
PyTorch offers the three as one. SciPy offers each, and the third, which takes as long as the other two, is left out:
see :mod:`lora_lab.linalg.weight_basis`. But SciPy's routines keep the interpreter to themselves, and their BLAS has one
number of threads for the whole process, which is not ours to change. Hence processes.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

import torch

from lora_lab.errors import CancelledError
from lora_lab.linalg.threads import worker_count

if TYPE_CHECKING:
    from types import TracebackType

_CHILD: Final = Path(__file__).with_name("tridiagonal_child.py")
# Sides from which on it is worth it. The matrix alone decides, so that the bits do not depend on what else is done.
SMALLEST_SIDE: Final = 1024
_BLOCK_ELEMENTS: Final = 1 << 20
_THREADS: Final = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")

_Child = subprocess.Popen[bytes]


class Reduced(NamedTuple):
    """The eigendecomposition of a symmetric k × k matrix, in parts.

    squares : (k,) float64, its eigenvalues, descending; one that is not finite: of a matrix that is not
    vectors : (k, k) float32, rows: its eigenvectors, or those of the tridiagonal form when there are reflectors
    reflectors : (k−1, k−1) float32, as :class:`lora_lab.linalg.weight_basis.WeightBasis` has them
    scales : (k−1,) float64
    """

    squares: torch.Tensor
    vectors: torch.Tensor
    reflectors: torch.Tensor | None = None
    scales: torch.Tensor | None = None


class TridiagonalProcesses:
    """Up to one process for each processor; they end with the ``with`` block, whatever they are doing.

    Notes
    -----
    Which process takes a matrix changes no bit. One that cannot be started, or ends, is not replaced; when none is
    left, :meth:`reduced` answers None and the caller computes by itself.
    """

    def __init__(self) -> None:
        self._children: list[_Child] = []
        self._free: queue.SimpleQueue[_Child | None] = queue.SimpleQueue()
        self._places = 0
        self._is_closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def expect(self, shape: tuple[int, int], device: str) -> None:
        """Start another process when a matrix of `shape` is one for them, unless there are as many as processors.

        Call it from the thread that outlives the work: on Linux a process ends with the thread that started it.
        """
        if self._places < worker_count() and _is_worth_it(shape, device):
            self._places += 1
            self._free.put(self._started())

    def reduced(self, side: torch.Tensor) -> Reduced | None:
        """Decompose side·sideᵀ; None when it is better done here, or no process can do it.

        Parameters
        ----------
        side : (k, m), k ≤ m, float of any width, any strides

        Raises
        ------
        CancelledError
            they were closed meanwhile.
        """
        shape = (side.shape[0], side.shape[1])
        if not self._places or not _is_worth_it(shape, side.device.type):
            return None
        child = self._free.get()
        found = None
        try:
            found = None if child is None else _exchanged(child, side)
        except (OSError, EOFError, ValueError):
            child = None  # it has ended, or no longer says what is understood
        finally:
            self._free.put(child)
        if self._is_closed:
            raise CancelledError("Cancelled.", hint="Nothing was changed.")
        return found

    def close(self) -> None:
        """End all processes at once; threads that wait for one are told so."""
        self._is_closed = True
        for child in self._children:
            child.kill()
        for child in self._children:
            child.wait()
            for pipe in (child.stdin, child.stdout):
                with suppress(OSError):
                    assert pipe is not None
                    pipe.close()

    def _started(self) -> _Child | None:
        if not sys.executable:
            return None
        try:
            child = subprocess.Popen(
                [sys.executable, "-P", str(_CHILD)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, **dict.fromkeys(_THREADS, "1")},
            )
        except OSError:
            return None
        self._children.append(child)
        return child


def _is_worth_it(shape: tuple[int, int], device: str) -> bool:
    return device == "cpu" and min(shape) >= SMALLEST_SIDE


def _exchanged(child: _Child, side: torch.Tensor) -> Reduced | None:
    """Send `side` and receive what became of it; None where the process could not do it."""
    assert child.stdin is not None
    assert child.stdout is not None
    rows, columns = side.shape
    dtype = torch.float64 if side.dtype == torch.float64 else torch.float32  # what both sides know, and exact
    step = max(256, _BLOCK_ELEMENTS // rows)
    request = {"rows": rows, "columns": columns, "step": step, "dtype": "f8" if dtype == torch.float64 else "f4"}
    child.stdin.write(json.dumps(request).encode() + b"\n")
    for first in range(0, columns, step):
        block = side[:, first : first + step].to(dtype).contiguous()
        child.stdin.write(_bytes_of(block))
    child.stdin.flush()
    answer = json.loads(child.stdout.readline())
    if answer["fault"] == "not_finite":
        return Reduced(torch.tensor(torch.nan), torch.empty(0, 0))
    if answer["fault"]:
        return None
    squares = _received(child, (rows,), torch.float64)
    scales = _received(child, (rows - 1,), torch.float64)
    reflectors = _received(child, (rows - 1, rows - 1), torch.float32)
    return Reduced(squares, _received(child, (rows, rows), torch.float32), reflectors, scales)


def _received(child: _Child, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    values = torch.empty(shape, dtype=dtype)
    room = _bytes_of(values)
    while room.nbytes:
        count = child.stdout.readinto(room)  # type: ignore[union-attr]
        if not count:
            raise EOFError
        room = room[count:]
    return values


def _bytes_of(values: torch.Tensor) -> memoryview:
    raw: Any = values.reshape(-1).view(torch.uint8).numpy()
    return memoryview(raw)
