"""Decompositions in processes of their own: the same numbers, the same bits, and nothing left running."""

from __future__ import annotations

import io
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from lora_lab.errors import CancelledError, NumericalError
from lora_lab.linalg import tridiagonal
from lora_lab.linalg.decompositions import compare_changed, compare_merged, decompose_weight
from lora_lab.linalg.spectra import Pair
from lora_lab.linalg.tridiagonal import TridiagonalProcesses
from lora_lab.linalg.tridiagonal_child import serve
from lora_lab.linalg.weight_basis import WeightBasis, basis_from

FLOAT32 = 2.0**-23
SHAPES = [(64, 64), (48, 90), (90, 48)]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tridiagonal, "SMALLEST_SIDE", 2)


@pytest.fixture(scope="module")
def processes() -> Iterator[TridiagonalProcesses]:
    with TridiagonalProcesses() as several:
        for _ in range(2):
            several.expect((4096, 4096), "cpu")
        yield several


def weight_of(shape: tuple[int, int], dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) / math.sqrt(shape[1])).to(dtype)


def apart(weight: torch.Tensor, processes: TridiagonalProcesses) -> WeightBasis:
    """The decomposition, which did come from a process."""
    basis = decompose_weight(weight, processes=processes)
    assert basis.reflectors is not None
    return basis


def deficient() -> torch.Tensor:
    return weight_of((64, 5)) @ weight_of((5, 70))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_decomposition_is_that_of_the_weight(
    shape: tuple[int, int], dtype: torch.dtype, processes: TridiagonalProcesses
) -> None:
    """Singular values to float64's square root at worst; Q orthonormal and diagonalising to float32."""
    weight = weight_of(shape, dtype)
    basis = apart(weight, processes)
    wide = weight.double().numpy()
    expected = np.linalg.svd(wide, compute_uv=False)
    assert basis.singular_values.numpy() == pytest.approx(expected, rel=0, abs=1e-12 * expected[0])
    vectors = basis.leading(min(shape)).numpy()
    assert np.abs(vectors.T @ vectors - np.eye(min(shape))).max() < 4 * FLOAT32
    side = wide if shape[0] <= shape[1] else wide.T
    assert np.abs(vectors.T @ side @ side.T @ vectors - np.diag(expected**2)).max() < 4 * FLOAT32 * expected[0] ** 2
    columns = torch.randn(min(shape), 3, dtype=torch.float64)
    assert basis.coordinates(columns).numpy() == pytest.approx(vectors.T @ columns.numpy(), abs=1e-12)


@pytest.mark.parametrize("weight", [torch.eye(6), torch.zeros(6, 9), torch.diag(torch.arange(1.0, 9.0)), deficient()])
def test_weights_that_need_no_reflector_or_have_no_rank(weight: torch.Tensor, processes: TridiagonalProcesses) -> None:
    """Where LAPACK's τ is zero the reflector is the identity, not one that turns a sign."""
    basis, here = apart(weight, processes), decompose_weight(weight)
    assert basis.rank == here.rank
    assert torch.allclose(basis.singular_values[: here.rank], here.singular_values[: here.rank], rtol=1e-12)
    vectors = basis.leading(min(weight.shape))
    gram = weight.double() @ weight.double().T
    assert torch.allclose(gram @ vectors, vectors * basis.singular_values.square(), atol=4e-7 * float(gram.max() + 1))


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_asked_of_it_is_the_same(shape: tuple[int, int], processes: TridiagonalProcesses) -> None:
    """Cosines of W + ΔW and of another matrix, through reflectors and without."""
    weight = weight_of(shape)
    pair = Pair("q", weight_of((4, shape[1]), seed=1), weight_of((shape[0], 4), seed=2), 2.0)
    changed = weight + pair.scaling * (pair.lora_B @ pair.lora_A)
    here, there = decompose_weight(weight), apart(weight, processes)
    for one, other in (
        (compare_merged(weight, here, pair, 6), compare_merged(weight, there, pair, 6)),
        (
            compare_changed(weight, here, changed, 6),
            compare_changed(weight, there, changed, 6, processes=processes),
        ),
    ):
        assert torch.allclose(one.singular_values, other.singular_values, rtol=1e-6)
        assert torch.allclose(one.max_cosines, other.max_cosines, atol=1e-5)


def test_kept_decompositions_are_the_same(processes: TridiagonalProcesses) -> None:
    """From the store come the same bits; what does not fit is none."""
    basis = apart(weight_of((20, 30)), processes)
    tensors = basis.to_tensors()
    again = basis_from((20, 30), tensors)
    assert again is not None
    assert torch.equal(again.leading(20), basis.leading(20))
    assert basis_from((21, 30), tensors) is None
    assert basis_from((20, 30), {name: tensors[name] for name in tensors if name != "scales"}) is None


def test_neither_their_number_nor_their_order_changes_a_bit(processes: TridiagonalProcesses) -> None:
    """Alone, and among others at the same time."""
    weights = [weight_of((100, 120), seed=seed) for seed in range(6)]
    found: list[WeightBasis | None] = [None] * 6

    def work(place: int) -> None:
        found[place] = apart(weights[place], processes)

    threads = [threading.Thread(target=work, args=(place,)) for place in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with TridiagonalProcesses() as one:
        one.expect((100, 120), "cpu")
        for weight, basis in zip(reversed(weights), reversed(found), strict=True):
            alone = apart(weight, one)
            assert basis is not None
            for name, tensor in alone.to_tensors().items():
                assert torch.equal(tensor, basis.to_tensors()[name])


def test_not_finite(processes: TridiagonalProcesses) -> None:
    """The same sentence, and the process goes on."""
    for value in (math.nan, math.inf):
        weight = weight_of((12, 20))
        weight[3, 4] = value
        with pytest.raises(NumericalError, match="'w' of the base holds NaN or infinity"):
            decompose_weight(weight, name="w", processes=processes)
    apart(weight_of((12, 20)), processes)


def test_a_process_that_ends_is_done_without() -> None:
    weight = weight_of((40, 40))
    with TridiagonalProcesses() as processes:
        processes.expect((40, 40), "cpu")
        apart(weight, processes)
        (child,) = processes._children
        child.kill()
        basis = decompose_weight(weight, processes=processes)
    assert basis.reflectors is None
    assert torch.equal(basis.vectors, decompose_weight(weight).vectors)


@pytest.mark.parametrize("executable", ["", "/no/such/python", "/bin/false"])
def test_without_processes_it_is_done_here(executable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", executable)
    with TridiagonalProcesses() as processes:
        processes.expect((40, 40), "cpu")
        assert decompose_weight(weight_of((40, 40)), processes=processes).reflectors is None


def test_small_ones_and_those_on_a_device_start_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tridiagonal, "SMALLEST_SIDE", 50)
    with TridiagonalProcesses() as processes:
        processes.expect((49, 400), "cpu")
        processes.expect((400, 400), "cuda:0")
        assert not processes._children
        assert processes.reduced(weight_of((49, 400))) is None


def test_closing_ends_them_and_whoever_waits() -> None:
    """In the middle of a decomposition that takes seconds; others wait for their turn."""
    told: list[BaseException] = []
    weight = torch.randn(2600, 2600)

    def work() -> None:
        try:
            processes.reduced(weight)
        except CancelledError as error:
            told.append(error)

    with TridiagonalProcesses() as processes:
        processes.expect((2600, 2600), "cpu")
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(0.6)
        started = time.monotonic()
        processes.close()
        for thread in threads:
            thread.join()
        assert time.monotonic() - started < 1.0
    assert len(told) == 3
    assert all(child.returncode is not None for child in processes._children)


@pytest.mark.skipif(sys.platform != "linux", reason="a process is told of its parent's end by Linux alone")
def test_they_end_with_whoever_started_them(tmp_path: Path) -> None:
    """Killed outright, in the middle of a decomposition."""
    script = tmp_path / "parent.py"
    script.write_text(
        "import threading, time, torch\n"
        "from lora_lab.linalg.tridiagonal import TridiagonalProcesses\n"
        "processes = TridiagonalProcesses()\n"
        "processes.expect((3000, 3000), 'cpu')\n"
        "threading.Thread(target=processes.reduced, args=(torch.randn(3000, 3000),), daemon=True).start()\n"
        "time.sleep(0.8)\n"
        "print(processes._children[0].pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    until = time.monotonic() + 5
    while time.monotonic() < until and not _is_over(child):
        time.sleep(0.02)
    assert _is_over(child)


def _is_over(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0] == "Z"


def test_a_fault_is_told_in_one_line() -> None:
    """A matrix beyond any memory; nothing follows, for the rest of the request is not read."""
    request = {"rows": 1 << 31, "columns": 4, "step": 4, "dtype": "f4"}
    answers = io.BytesIO()
    serve(io.BufferedReader(io.BytesIO(json.dumps(request).encode() + b"\n" + b"0" * 64)), answers)
    assert json.loads(answers.getvalue()) == {"fault": "ValueError"}
