"""One thread per decomposition, so that its bits do not depend on how many threads there are.

MKL's tall-skinny QR and its SVD divide their sums among the threads they are given: the last bits of the result change
with the number. A decomposition here therefore runs on one thread, and several of them run side by side.

``torch.set_num_threads`` would change the number for the whole process. What OpenMP and MKL offer instead,
``omp_set_num_threads`` and ``MKL_Set_Num_Threads_Local``, holds for the calling thread alone.
"""

from __future__ import annotations

import ctypes
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

T = TypeVar("T")
R = TypeVar("R")
_MOST_WORKERS: Final = 8
_LIBRARIES: Final = ("libtorch_cpu.so", "libtorch_cpu.dylib", "torch_cpu.dll")


@contextmanager
def one_thread() -> Iterator[None]:
    """Let the calling thread compute alone inside the block; no other thread notices.

    Examples
    --------
    >>> before = torch.get_num_threads()
    >>> with one_thread():
    ...     factor = torch.linalg.qr(torch.eye(3, dtype=torch.float64)).R
    >>> torch.get_num_threads() == before
    True
    """
    # A thread's first question makes torch set its own number for it; asked later, that would undo what follows.
    torch.get_num_threads()
    set_mkl, set_openmp, get_openmp = _setters()
    mkl = set_mkl(1) if set_mkl else 0
    openmp = get_openmp() if get_openmp else 0
    if set_openmp:
        set_openmp(1)
    try:
        yield
    finally:
        if set_openmp and get_openmp:
            set_openmp(openmp)
        if set_mkl:
            set_mkl(mkl)  # 0 is "follow the process", what MKL answers when nothing was set


def advanced_alone(items: Iterable[T]) -> Iterator[T]:
    """Pass `items` on, each made on one thread: the processors belong to the workers that take them.

    A reader whose arithmetic wakes OpenMP's threads leaves them spinning beside workers that compute.

    Examples
    --------
    >>> list(advanced_alone(number * 2 for number in (1, 2)))
    [2, 4]
    """
    stream = iter(items)
    while True:
        with one_thread():
            try:
                item = next(stream)
            except StopIteration:
                return
        yield item


def in_lanes(function: Callable[[T], R], items: Sequence[T], lanes: int) -> list[R]:
    """Results of `function` in the order of `items`, `lanes` of them worked out side by side, each on one thread.

    Examples
    --------
    >>> in_lanes(abs, [-3, 2, -1], 2)
    [3, 2, 1]
    """

    def some(share: Sequence[T]) -> list[R]:
        with one_thread():
            return [function(item) for item in share]

    with ThreadPoolExecutor(lanes, thread_name_prefix="lane") as pool:
        done = list(pool.map(some, [items[lane::lanes] for lane in range(lanes)]))
    return [done[place % lanes][place // lanes] for place in range(len(items))]


def worker_count() -> int:
    """How many decompositions run side by side: the processors this process may use, at most eight."""
    try:
        available = len(os.sched_getaffinity(0))
    except AttributeError:  # not a Linux
        available = os.cpu_count() or 1
    return max(1, min(available, _MOST_WORKERS))


@lru_cache(maxsize=1)
def _setters() -> tuple[Any, Any, Any]:
    """MKL's setter, OpenMP's setter and getter, each None in a torch that has no such thing.

    ``MKL_Set_Num_Threads_Local`` in this spelling is the C function; the lower-case name is Fortran's and takes an
    address.
    """
    folder = Path(torch.__file__).parent / "lib"
    for name in _LIBRARIES:
        if (folder / name).exists():
            try:
                library = ctypes.CDLL(str(folder / name))  # loaded already; this only finds it
            except OSError:
                break
            return (
                getattr(library, "MKL_Set_Num_Threads_Local", None),
                getattr(library, "omp_set_num_threads", None),
                getattr(library, "omp_get_max_threads", None),
            )
    return (None, None, None)
