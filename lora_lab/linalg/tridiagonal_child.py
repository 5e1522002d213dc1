"""The process that reduces: run as a script of its own, it turns S Sᵀ into tridiagonal form, one matrix after another.

Its BLAS has one thread, which the environment tells it before it is loaded; in the process that asks, the number of
threads is nobody's to change. It needs NumPy and SciPy and nothing of this package, and ends when its standard input
does, or on Linux when whoever started it is gone.

A request is one line of JSON, ``{"rows", "columns", "step", "dtype"}``, and S by blocks of ``step`` columns, each
(rows, step) in row-major order. The answer is one line of JSON, ``{"fault": ""}`` or what went wrong, and when nothing
did, with k = rows: σ² (k,) float64 descending, τ (k−1,) float64, reflectors v as rows (k−1, k−1) float32, and in the
order of σ² the eigenvectors of the tridiagonal matrix as rows (k, k) float32.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from typing import TYPE_CHECKING, Any, BinaryIO, Final

if TYPE_CHECKING:
    import numpy as np

_END_WITH_PARENT: Final = 1  # PR_SET_PDEATHSIG of Linux
_LAPACK_BLOCK: Final = 64


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer one request after another until there are no more."""
    import numpy as np

    while line := requests.readline():
        request = json.loads(line)
        try:
            gram = read_gram(requests, **request)
            parts = reduced(gram) if np.isfinite(np.trace(gram)) else None
        except (ArithmeticError, MemoryError, ValueError, np.linalg.LinAlgError) as error:
            answers.write(json.dumps({"fault": type(error).__name__}).encode() + b"\n")
            return  # what is left of the request is not read
        answers.write(json.dumps({"fault": "" if parts else "not_finite"}).encode() + b"\n")
        answers.writelines(part.data.cast("B") for part in parts or ())
        answers.flush()


def read_gram(requests: BinaryIO, rows: int, columns: int, step: int, dtype: str) -> np.ndarray[Any, Any]:
    """S Sᵀ, (rows, rows) float64, of which only the lower triangle is filled."""
    import numpy as np
    from scipy.linalg.blas import dsyrk

    gram = np.zeros((rows, rows), dtype=np.float64, order="F")
    for first in range(0, columns, step):
        block = np.empty((rows, min(step, columns - first)), dtype=dtype)
        fill(requests, block)
        gram = dsyrk(1.0, block.astype(np.float64).T, beta=1.0, c=gram, trans=1, lower=1, overwrite_c=1)
    return gram


def fill(requests: BinaryIO, block: np.ndarray[Any, Any]) -> None:
    """Read all of `block`; a request that ends before it does ends this process."""
    room = block.data.cast("B")
    while room.nbytes:
        count = requests.readinto(room)  # type: ignore[attr-defined]
        if not count:
            os._exit(0)
        room = room[count:]


def reduced(gram: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], ...]:
    """Householder reflectors that make `gram` tridiagonal, and the eigenvectors of what they leave."""
    import numpy as np
    from scipy.linalg import eigh_tridiagonal
    from scipy.linalg.lapack import dsytrd

    packed, diagonal, beside, scales, fault = dsytrd(gram, lower=1, lwork=_LAPACK_BLOCK * len(gram), overwrite_a=1)
    if fault:
        raise ArithmeticError(fault)
    reflectors = np.triu(packed.T[:-1, 1:], 1).astype(np.float32)
    # A rounded v has another length; with the τ that fits it, 1 − τ v vᵀ is orthogonal still.
    lengths = 1.0 + np.einsum("ij,ij->i", reflectors, reflectors, dtype=np.float64)
    scales = np.where(scales == 0, 0.0, 2.0 / lengths)
    values, vectors = eigh_tridiagonal(diagonal, beside, check_finite=False, lapack_driver="stemr")
    return values[::-1].copy(), scales, reflectors, np.array(vectors.T[::-1], dtype=np.float32, order="C")


def main() -> None:
    """Serve whoever holds the other ends of standard input and output."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the terminal is the parent's to handle
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_END_WITH_PARENT, signal.SIGKILL)
    serve(sys.stdin.buffer, sys.stdout.buffer)


if __name__ == "__main__":
    main()
