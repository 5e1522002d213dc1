"""Seconds that work takes on a device, and nothing that was queued before or is still to come."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


class Clock:
    """Times pieces of work on one device.

    On the processor by its monotonic clock. On CUDA by two events around the work, recorded into a queue that was
    empty: the device's own clock, which sees waiting for the host as well. Elsewhere by the monotonic clock between two
    synchronisations.

    Parameters
    ----------
    device : resolved: cpu, cuda:N, mps

    Examples
    --------
    >>> Clock("cpu").seconds(lambda: None) >= 0.0
    True
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.kind = device.partition(":")[0]

    def seconds(self, work: Callable[[], object]) -> float:
        """Do `work` once and say how long it took."""
        self.synchronise()
        if self.kind == "cuda":
            return self._between_events(work)
        started = time.perf_counter()
        work()
        self.synchronise()
        return time.perf_counter() - started

    def synchronise(self) -> None:
        """Wait until the device has done everything."""
        if self.kind == "cuda":
            import torch

            torch.cuda.synchronize(self.device)
        elif self.kind == "mps":
            import torch

            torch.mps.synchronize()

    def _between_events(self, work: Callable[[], object]) -> float:
        import torch

        with torch.cuda.device(self.device):
            make: Any = torch.cuda.Event  # which torch leaves without types
            start, end = make(enable_timing=True), make(enable_timing=True)
            start.record()
            work()
            end.record()
            end.synchronize()
            return float(start.elapsed_time(end)) / 1000.0
