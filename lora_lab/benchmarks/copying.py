"""What a plain copy reaches: the limit of everything that reads and writes every weight, taken in the same rounds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lora_lab.benchmarks.memory import cache_bytes
from lora_lab.benchmarks.rounds import Contestant
from lora_lab.benchmarks.spread import spread_of

if TYPE_CHECKING:
    from collections.abc import Sequence

COPY: Final = "copy"
# What nothing touches while so many caches full are touched is in none.
_CACHES: Final = 4
_MOST_SETS: Final = 16
_MOST_BYTES: Final = 1 << 28


class CopyLimit:
    """A copy of as many bytes as `nbytes`, at most a quarter of a gibibyte, and enough that no cache holds them."""

    def __init__(self, device: str, nbytes: int) -> None:
        import torch

        self.size = max(_CACHES * (cache_bytes(device) or 0), min(nbytes, _MOST_BYTES), 1)
        source = torch.ones(self.size, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        self.contestant = Contestant(COPY, lambda _: target.copy_(source))

    def bandwidth(self, samples: Sequence[float]) -> float:
        """Bytes a second, those read and those written."""
        return 2 * self.size / spread_of(samples).p50


def sets_of_weights(touched_bytes: int, device: str) -> int:
    """How many sets of buffers to take in turns so that between two uses of one, caches have seen enough of others.

    Parameters
    ----------
    touched_bytes : in one round

    Examples
    --------
    >>> sets_of_weights(1 << 40, "cpu")
    1
    """
    wanted = _CACHES * (cache_bytes(device) or 0)
    return max(1, min(_MOST_SETS, -(-wanted // max(1, touched_bytes))))
