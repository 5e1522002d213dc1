"""Many small decompositions at once: each on one thread, as many as there are processors, results in order."""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, TypeVar

from lora_lab.linalg.threads import one_thread, worker_count

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future

T = TypeVar("T")
# Bytes of inputs that wait, read but not yet worked on.
_WINDOW_BYTES: Final = 64 << 20
# And how many tasks wait for each worker: enough to keep it busy, few enough that results come as reading goes on.
_WINDOW_TASKS: Final = 4


def side_by_side(tasks: Iterable[tuple[int, Callable[[], T]]]) -> Iterator[T]:
    """Call many functions on worker threads and yield what they return, in the order given.

    `tasks` is advanced in the calling thread, so whatever it reads is read there, while earlier tasks are computed.
    What a task raises is raised when its turn comes.

    Parameters
    ----------
    tasks : the bytes that each holds until it is done, and the function; at most 64 MiB of them, or one, and four for
        each processor wait at any time

    Examples
    --------
    >>> list(side_by_side((0, lambda number=number: number**2) for number in range(4)))
    [0, 1, 4, 9]
    """
    workers = worker_count()
    waiting: deque[tuple[int, Future[T]]] = deque()
    held = 0
    pool = ThreadPoolExecutor(workers, thread_name_prefix="subspaces")
    try:
        for size, task in tasks:
            waiting.append((size, pool.submit(_alone, task)))
            held += size
            while waiting and (
                waiting[0][1].done()
                or len(waiting) > workers * _WINDOW_TASKS
                or (held > _WINDOW_BYTES and len(waiting) > 1)
            ):
                size, future = waiting.popleft()
                held -= size
                yield future.result()
        while waiting:
            yield waiting.popleft()[1].result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _alone(task: Callable[[], T]) -> T:
    with one_thread():
        return task()
