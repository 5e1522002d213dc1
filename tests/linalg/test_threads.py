"""The number of threads changes no bit, and nobody else's number of threads is touched."""

from __future__ import annotations

import threading

import pytest
import torch

from lora_lab.linalg.spectra import Pair, delta_inner, factored_singular_values, factored_svd
from lora_lab.linalg.streaming import stream_singular_values
from lora_lab.linalg.threads import one_thread, worker_count


@pytest.fixture(autouse=True)
def own_threads():
    """Give torch its number of threads back after the test."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def everything(lora_A: torch.Tensor, lora_B: torch.Tensor) -> list[torch.Tensor]:
    pair = Pair("m", lora_A, lora_B, 2.0)
    streamed = [found for _, found in stream_singular_values([pair, pair])]
    inner = torch.tensor(delta_inner(pair, pair), dtype=torch.float64)
    return [factored_singular_values(lora_A, lora_B, 2.0), *factored_svd(lora_A, lora_B, 2.0), *streamed, inner]


@pytest.mark.parametrize(("rank", "inputs", "outputs"), [(8, 384, 1024), (32, 1000, 4000), (128, 1024, 512)])
def test_the_number_of_threads_changes_no_bit(random_factors, rank, inputs, outputs):
    factors = random_factors(rank, inputs, outputs, dtype=torch.float32)
    results = []
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        results.append(everything(*factors))
        assert torch.get_num_threads() == threads
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


def test_one_thread_holds_for_this_thread_alone():
    torch.set_num_threads(3)
    inside, outside = [], []
    with one_thread():
        inside.append(torch.get_num_threads())
        other = threading.Thread(target=lambda: outside.append(torch.get_num_threads()))
        other.start()
        other.join()
    assert (inside, outside) == ([1], [3])
    assert torch.get_num_threads() == 3


def test_one_thread_ends_with_an_error():
    torch.set_num_threads(2)
    with pytest.raises(ZeroDivisionError), one_thread():
        _ = 1 / 0
    assert torch.get_num_threads() == 2


def test_there_is_a_worker():
    assert 1 <= worker_count() <= 8
