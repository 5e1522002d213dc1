"""What a plain copy reaches: the limit of everything that reads and writes every weight, taken in the same rounds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lora_lab.benchmarks.memory import cache_bytes
from lora_lab.benchmarks.rounds import Contestant
from lora_lab.benchmarks.spread import spread_of
from lora_lab.domain.figures import size
from lora_lab.domain.report import Finding

if TYPE_CHECKING:
    from collections.abc import Sequence

COPY: Final = "copy"
# What nothing touches while so many caches full are touched is in none.
_CACHES: Final = 4
_MOST_SETS: Final = 16
_MOST_BYTES: Final = 1 << 28
_MOST_DEVICE_BYTES: Final = 1 << 30  # of a device so fast that beginning and ending would count otherwise


class CopyLimit:
    """A copy of as many bytes as `nbytes`, within bounds, and enough that no cache holds them.

    At most a quarter of a gibibyte, or one on a device. On the processor by as many threads as strategies take, where
    torch's own are fewer.
    """

    def __init__(self, device: str, nbytes: int) -> None:
        import torch

        from lora_lab.linalg.threads import in_lanes, worker_count

        most = _MOST_DEVICE_BYTES if device.startswith("cuda") else _MOST_BYTES
        self.size = max(_CACHES * (cache_bytes(device) or 0), min(nbytes, most), 1)
        source = torch.ones(self.size, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        lanes = worker_count()
        if device != "cpu" or torch.get_num_threads() >= lanes:
            self.contestant = Contestant(COPY, lambda _: target.copy_(source))
            return
        pairs = list(zip(target.chunk(lanes), source.chunk(lanes), strict=True))
        self.contestant = Contestant(COPY, lambda _: in_lanes(lambda pair: pair[0].copy_(pair[1]), pairs, lanes))

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


def cache_findings(touched_bytes: int, device: str) -> tuple[Finding, ...]:
    """Say so where a cache may hold part of what is touched in all, so that times are of small models alone.

    Parameters
    ----------
    touched_bytes : by all sets of buffers together
    """
    cache = cache_bytes(device) or 0
    if touched_bytes >= _CACHES * cache:
        return ()
    return (
        Finding(
            "in_cache",
            f"All weights that take turns are {size(touched_bytes)}, and the last-level cache of {device} is "
            f"{size(cache)}: part of them may wait there, as those of a larger model cannot.",
        ),
    )
