"""Contestants run in turns, so that whatever the machine goes through meets all of them alike.

Every round runs each contestant once, in an order of its own that follows from the seed: nobody always comes after the
one that leaves the caches full. Between two runs there is a pause as long as idle OpenMP threads keep a processor busy
looking for more work; without it the next one would compete with them.
"""

from __future__ import annotations

import gc
import random
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from lora_lab.domain.progress import Unwatched, stop_if_cancelled

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from lora_lab.benchmarks.clock import Clock
    from lora_lab.domain.progress import Observer

_PAUSE_SECONDS: Final = 0.002
_PAUSE_SHARE: Final = 0.05  # of what a run takes, at most


@dataclass(frozen=True, slots=True)
class Contestant:
    """One way of doing something.

    id : tells it apart
    work : timed; given the number of the run, from 0, the warm-up included, so that it can take other buffers each time
    before : done before every run, not timed
    """

    id: str
    work: Callable[[int], object]
    before: Callable[[int], object] | None = None


class Rounds:
    """Runs contestants in interleaved rounds and keeps what every run took.

    Parameters
    ----------
    seed : of the orders
    observer : is told after every run, as a row of the table ``samples`` too; may cancel between two

    Examples
    --------
    >>> from lora_lab.benchmarks.clock import Clock
    >>> rounds = Rounds([Contestant("a", lambda run: None), Contestant("b", lambda run: None)], Clock("cpu"))
    >>> rounds.warm_up()
    >>> rounds.measure(3)
    >>> {id: len(samples) for id, samples in rounds.samples.items()}
    {'a': 3, 'b': 3}
    """

    def __init__(
        self, contestants: Sequence[Contestant], clock: Clock, *, seed: int = 0, observer: Observer | None = None
    ) -> None:
        self._contestants = list(contestants)
        self._clock = clock
        self._random = random.Random(seed)
        self._observer = observer or Unwatched()
        self._runs: dict[str, int] = {one.id: 0 for one in contestants}
        self._last: dict[str, float] = {}
        self.samples: dict[str, list[float]] = {one.id: [] for one in contestants}
        self.worked_seconds = 0.0  # in contestants' work, the warm-up included
        self.done = 0  # runs
        self.total = 0  # runs that are known to come; whoever knows of more says so

    def warm_up(self, runs: int = 1) -> None:
        """Run everything without keeping the time: what is loaded, compiled or allocated once is then there."""
        self.total = max(self.total, self.done + runs * len(self._contestants))
        for _ in range(runs):
            for contestant in self._contestants:
                self._run(contestant)

    def keep_only(self, wanted: Collection[str]) -> None:
        """Run none but the contestants in `wanted` from now on."""
        self._contestants = [one for one in self._contestants if one.id in wanted]

    def measure(self, repeats: int) -> None:
        """Run `repeats` rounds.

        Raises
        ------
        CancelledError
            the observer no longer wants it.
        """
        self.total = max(self.total, self.done + repeats * len(self._contestants))
        with _without_collection():
            for _ in range(repeats):
                for contestant in self._random.sample(self._contestants, len(self._contestants)):
                    seconds = self._run(contestant)
                    self.samples[contestant.id].append(seconds)
                    place = len(self.samples[contestant.id])
                    self._observer.rows("samples", [{"id": contestant.id, "run": place, "seconds": seconds}])

    def _run(self, contestant: Contestant) -> float:
        stop_if_cancelled(self._observer)
        number = self._runs[contestant.id]
        if contestant.before is not None:
            contestant.before(number)
        time.sleep(min(_PAUSE_SECONDS, _PAUSE_SHARE * self._last.get(contestant.id, 1.0)))
        seconds = self._clock.seconds(lambda: contestant.work(number))
        self._runs[contestant.id], self._last[contestant.id] = number + 1, seconds
        self.worked_seconds += seconds
        self.done += 1
        self._observer.advance(self.done, self.total, contestant.id)
        return seconds


@contextmanager
def _without_collection() -> Iterator[None]:
    """Keep the collector of garbage from running inside a measurement."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
