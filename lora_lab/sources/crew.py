"""A few requests at once, by threads that nobody waits for when a server hangs."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final, TypeVar

from lora_lab.domain.progress import stop_if_cancelled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from lora_lab.domain.progress import Observer

T = TypeVar("T")
_LOOK_SECONDS: Final = 0.1


def in_parallel(
    tasks: Sequence[Callable[[], T]], connections: int, observer: Observer, give_up: Callable[[], object]
) -> Iterator[T]:
    """Call functions on daemon threads and yield what they return, in the order given.

    What a task raises is raised when its turn comes. A pool's threads would be waited for when the program ends, and
    one that waits for an answer that never comes would hold it back.

    Parameters
    ----------
    connections : most threads
    observer : asked whether to go on, while the next result is waited for
    give_up : called at the end, whatever it was: ends tasks that are still running

    Raises
    ------
    CancelledError
        the observer asked to stop.
    """
    changed = threading.Condition()
    remaining = iter(enumerate(tasks))
    done: dict[int, tuple[Any, BaseException | None]] = {}
    is_over = threading.Event()

    def work() -> None:
        while not is_over.is_set():
            with changed:
                place, task = next(remaining, (-1, None))
            if task is None:
                return
            result: Any = None
            error: BaseException | None = None
            try:
                result = task()
            except BaseException as raised:
                error = raised
            with changed:
                done[place] = (result, error)
                changed.notify_all()

    for number in range(min(connections, len(tasks))):
        threading.Thread(target=work, name=f"asking-{number}", daemon=True).start()
    try:
        for place in range(len(tasks)):
            with changed:
                while place not in done:
                    stop_if_cancelled(observer)
                    changed.wait(_LOOK_SECONDS)
                result, error = done.pop(place)
            if error is not None:
                raise error
            yield result
    finally:
        is_over.set()
        give_up()
