"""A merged base as tensors: the bytes of the files, on the device and under the cancellation that is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from builders import write_adapter, write_sharded
from safetensors.torch import load_file

from lora_lab import Session
from lora_lab.domain.dtypes import DType
from lora_lab.errors import CancelledError, CompatibilityError
from lora_lab.formats.factors import FactorReader
from lora_lab.operations.in_memory import merged_state_dict, merged_tensors
from lora_lab.operations.merge import merge
from lora_lab.operations.options import MergeOptions


def whole(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


OPTIONS = {
    "as it is": MergeOptions(),
    "half": MergeOptions(dtype=DType.F16, strengths=(0.5,)),
    "by chance": MergeOptions(dtype=DType.BF16, rounding="stochastic", seed=4),
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_the_bytes_of_the_files(options: MergeOptions, tmp_path: Path) -> None:
    """Name for name and bit for bit what the same merge writes."""
    session = Session(cache=False)
    base = session.base(str(write_sharded(tmp_path / "base", torch.bfloat16)))
    adapter = session.adapter(str(write_adapter(tmp_path / "adapter")))
    merge([adapter], base, tmp_path / "out", reader=FactorReader(), options=options)
    made = merged_state_dict([adapter], base, reader=FactorReader(), options=options)
    written = whole(tmp_path / "out")
    assert made.keys() == written.keys()
    for name, tensor in written.items():
        assert made[name].dtype == tensor.dtype
        assert made[name].shape == tensor.shape
        assert made[name].equal(tensor)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_another_device_computes_the_same(tmp_path: Path) -> None:
    """Sums of float64 rounded once are the same bits on either device for weights of this size."""
    session = Session(cache=False)
    base = session.base(str(write_sharded(tmp_path / "base", torch.bfloat16)))
    adapter = session.adapter(str(write_adapter(tmp_path / "adapter")))
    here = merged_state_dict([adapter], base, reader=FactorReader())
    there = merged_state_dict(
        [adapter], base, reader=FactorReader(), options=MergeOptions(device="cuda"), device="cuda"
    )
    assert all(there[name].is_cuda and there[name].cpu().equal(tensor) for name, tensor in here.items())


class Counting:
    """Notes what it is told, and wants it no longer after some steps."""

    def __init__(self, most: int = 1 << 30) -> None:
        self.seen: list[tuple[int, int]] = []
        self.most = most

    def advance(self, done: int, total: int, what: str = "") -> None:
        self.seen.append((done, total))

    def rows(self, table: str, rows: Any) -> None: ...

    def is_cancelled(self) -> bool:
        return len(self.seen) >= self.most


def test_progress_and_cancellation(tmp_path: Path) -> None:
    """Progress only grows; a cancelled one gives no tensor more; nothing that does not fit is begun."""
    session = Session(cache=False)
    base = session.base(str(write_sharded(tmp_path / "base")))
    adapter = session.adapter(str(write_adapter(tmp_path / "adapter")))
    counting = Counting()
    merged_state_dict([adapter], base, reader=FactorReader(), observer=counting)
    assert counting.seen == sorted(counting.seen)
    with pytest.raises(CancelledError):
        merged_state_dict([adapter], base, reader=FactorReader(), observer=Counting(2))
    with pytest.raises(CompatibilityError):  # at the call, not at the first tensor
        merged_tensors([adapter], adapter_as_base(tmp_path, session), reader=FactorReader())


def adapter_as_base(folder: Path, session: Session) -> Any:
    """A base that has none of the modules."""
    from safetensors.torch import save_file

    (folder / "other").mkdir()
    save_file({"other.weight": torch.ones(2, 2)}, folder / "other" / "model.safetensors")
    return session.base(str(folder / "other"))
