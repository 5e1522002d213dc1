"""The spectra of many ΔW: several pairs of factors side by side on a processor, batches of one shape on a GPU."""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from lora_lab.linalg.batches import stream_in_batches
from lora_lab.linalg.device import has_float64
from lora_lab.linalg.spectra import Pair, factored_singular_values
from lora_lab.linalg.threads import worker_count

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from concurrent.futures import Future

    import torch

# Bytes of factors that wait, read but not yet decomposed.
_WINDOW_BYTES: Final = 64 << 20
# And how many of them wait for each worker: enough to keep it busy, few enough that results come as reading goes on.
_WINDOW_PAIRS: Final = 4


def stream_singular_values(pairs: Iterable[Pair], *, device: str = "cpu") -> Iterator[tuple[Pair, torch.Tensor]]:
    """Compute the singular values of many ΔW, yielding each with its pair, in the order given.

    While one is taken the following ones are already being read and decomposed, as many as there are processors;
    `pairs` is advanced in the calling thread. A device without float64 leaves the work to the processor.

    Parameters
    ----------
    pairs : read lazily; at most 64 MiB of them, or one, and four for each processor wait at any time
    device : cpu, cuda:N or mps, as :func:`~lora_lab.linalg.device.resolve_device` gives it

    Raises
    ------
    CompatibilityError, NumericalError
        as :func:`~lora_lab.linalg.spectra.factored_singular_values`, naming the pair.
    """
    if device == "cpu" or not has_float64(device):
        return _stream_on_processor(pairs)
    return stream_in_batches(pairs, device=device)


def _stream_on_processor(pairs: Iterable[Pair]) -> Iterator[tuple[Pair, torch.Tensor]]:
    workers = worker_count()
    waiting: deque[tuple[Pair, Future[torch.Tensor]]] = deque()
    held = 0
    pool = ThreadPoolExecutor(workers, thread_name_prefix="spectrum")
    try:
        for pair in pairs:
            future = pool.submit(factored_singular_values, pair.lora_A, pair.lora_B, pair.scaling, name=pair.name)
            waiting.append((pair, future))
            held += _bytes(pair)
            while waiting and (
                waiting[0][1].done()
                or len(waiting) > workers * _WINDOW_PAIRS
                or (held > _WINDOW_BYTES and len(waiting) > 1)
            ):
                done, future = waiting.popleft()
                held -= _bytes(done)
                yield done, future.result()
        while waiting:
            done, future = waiting.popleft()
            yield done, future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _bytes(pair: Pair) -> int:
    return pair.lora_A.nbytes + pair.lora_B.nbytes
