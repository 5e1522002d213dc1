"""Header-level work beside the screen.

A daemon thread, not a worker of an executor: leaving the program waits for an executor's threads, and a read from a
network drive that hangs would keep the terminal. Whoever works here looks at ``stop`` between two units.
"""

from __future__ import annotations

import gc
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from textual.message import Message
    from textual.message_pump import MessagePump


def work_beside(
    task: Callable[[threading.Event, Callable[[Message], bool]], None], listener: MessagePump, name: str
) -> threading.Event:
    """Run ``task(stop, tell)`` in a thread of its own; setting the event given back asks it to stop.

    ``tell(message)`` posts to `listener`; after the application is gone, or after ``stop``, it does nothing.
    """
    stop = threading.Event()

    def tell(message: Message) -> bool:
        if stop.is_set():
            return False
        try:
            return listener.post_message(message)
        except RuntimeError:  # the event loop has been closed
            return False

    threading.Thread(target=task, args=(stop, tell), name=f"lora-lab {name}", daemon=True).start()
    return stop


def settle_memory() -> None:
    """Take what is loaded now out of the garbage collector's sight.

    Classes and modules live as long as the program; walking over a hundred thousand of them stops the screen for a
    tenth of a second each time. Called when a library has been loaded and is there to stay.
    """
    gc.freeze()
