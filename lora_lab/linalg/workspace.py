"""Memory that a thread uses again from block to block: to ask the system for it anew costs more than the sums in it."""

from __future__ import annotations

import threading
from math import prod

import torch


class Workspace(threading.local):
    """Named buffers, for each thread its own; what is in one lasts until its name is asked for again.

    Examples
    --------
    >>> space = Workspace()
    >>> first = space.take("sum", (2, 3), torch.float32, torch.device("cpu"))
    >>> again = space.take("sum", (1, 3), torch.float32, torch.device("cpu"))
    >>> again.data_ptr() == first.data_ptr()
    True
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.dtype, torch.device], torch.Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Give a buffer of `shape`, whose values are anything; grown when it was smaller."""
        count = prod(shape)
        key = (name, dtype, device)
        buffer = self._buffers.get(key)
        if buffer is None or buffer.numel() < count:
            buffer = self._buffers[key] = torch.empty(count, dtype=dtype, device=device)
        return buffer[:count].view(shape)

    def converted(self, name: str, values: torch.Tensor, dtype: torch.dtype, *, is_copy: bool = False) -> torch.Tensor:
        """Give `values` as `dtype`, in a buffer; themselves when they are so already, but for `is_copy`."""
        if values.dtype == dtype and not is_copy:
            return values
        return self.take(name, tuple(values.shape), dtype, values.device).copy_(values)
