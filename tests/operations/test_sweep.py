"""Sweeps: every output is the one that its strengths alone would give, and there are all of them or none."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import builders
import pytest
from storage.faulty import FaultyDisk

from lora_lab import LoraLabError, Session
from lora_lab.domain.sweeps import sets_of_strengths
from lora_lab.errors import CancelledError, OperationError
from lora_lab.formats.factors import FactorReader
from lora_lab.methods.exact import Linear
from lora_lab.operations.combine import CombineTarget
from lora_lab.operations.sweep import sweep
from lora_lab.storage.disk import Disk

SETS = [(0.7, 0.3), (1.0, -0.5), (0.0, 2.0)]


@pytest.fixture
def adapters(tmp_path: Path) -> list[str]:
    return [str(builders.write_adapter(tmp_path / name, rank=rank, seed=rank)) for name, rank in (("a", 4), ("b", 3))]


@pytest.mark.parametrize("method", ["svd", "dare_ties"])
def test_each_output_is_that_of_its_strengths(tmp_path: Path, adapters: list[str], method: str) -> None:
    """Byte for byte, with a receipt that replays; the table says what the receipts say."""
    how: dict[str, Any] = {"method": method, "rank": 3, "dtype": "bfloat16"}
    report = Session(seed=5).sweep(adapters, strengths=SETS, output=tmp_path / "out", **how)
    names = ["out-0.7-0.3", "out-1--0.5", "out-0-2"]
    assert [Path(row["output"]).name for row in report.table("sweep").rows] == names
    for row, name, strengths in zip(report.table("sweep").rows, names, SETS, strict=True):
        alone = Session(seed=5).combine(adapters, strengths=strengths, output=tmp_path / f"alone{name}", **how)
        for file in ("adapter_model.safetensors", "adapter_config.json"):
            assert (tmp_path / name / file).read_bytes() == (tmp_path / f"alone{name}" / file).read_bytes()
        receipt = json.loads((tmp_path / name / "lora_lab_receipt.json").read_text())
        assert receipt["arguments"]["strengths"] == list(strengths)
        assert {key: row[key] for key in ("norm", "relative_error", "rank_min", "parameters")} == {
            key: receipt["totals"][key] for key in ("norm", "relative_error", "rank_min", "parameters")
        }
        assert row["size_bytes"] == sum(one["size_bytes"] for one in alone.table("outputs").rows)
        assert Session().replay(tmp_path / name, output=tmp_path / f"again{name}").verdict is True
    dry = Session(seed=5).sweep(adapters, strengths=SETS, output=tmp_path / "dry", dry_run=True, **how)
    assert not list(tmp_path.glob("*dry*"))
    assert [row["relative_error"] for row in dry.table("sweep").rows] == [
        row["relative_error"] for row in report.table("sweep").rows
    ]


class Counting(FactorReader):
    """Counts what is read."""

    read = 0

    def factors_of(self, deltas: Any) -> Any:
        for one in super().factors_of(deltas):
            self.read += 1
            yield one


def test_factors_are_read_once(tmp_path: Path, adapters: list[str]) -> None:
    reader, opened = Counting(), [Session().adapter(one) for one in adapters]
    sweep(opened, Linear(), CombineTarget(tmp_path / "out"), SETS, reader=reader)
    assert reader.read == 2 * len(builders.MODULES)


@pytest.mark.parametrize(
    ("sets", "match"),
    [
        ([(1.0, 1.0), (1.0, 1.0)], "the same"),
        ([(1.0, 1.0), (1.0,)], "Got 1 strengths for 2"),
        ([(1.0, float("inf"))], "finite"),
        ([()], "empty"),
        ([], "nothing to combine"),
        ([(1.0, 2.0), (3.0, 4.0)], r"'.*out-3-4' exists already"),
    ],
)
def test_nothing_is_written_of_what_cannot_all_be(
    tmp_path: Path, adapters: list[str], sets: list[tuple[float, ...]], match: str
) -> None:
    (tmp_path / "out-3-4").mkdir()
    with pytest.raises(LoraLabError, match=match):
        Session().sweep(adapters, strengths=sets, output=tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "out-3-4"]


def test_a_result_that_does_not_fit_takes_the_others_with_it(tmp_path: Path, adapters: list[str]) -> None:
    """The last one exceeds float16; the first were complete, and are not given their names."""
    with pytest.raises(LoraLabError, match="exceeds the range of float16"):
        Session().sweep(adapters, strengths=[(1, 1), (1e12, 1)], dtype="float16", output=tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_neither_a_full_disk_nor_a_cancellation_leaves_anything(tmp_path: Path, adapters: list[str]) -> None:
    opened = [Session().adapter(one) for one in adapters]

    def run(disk: Disk, observer: Any = None) -> None:
        target = CombineTarget(tmp_path / "out", disk=disk)
        sweep(opened, Linear(), target, SETS, reader=FactorReader(), observer=observer)

    counting = FaultyDisk()
    run(counting)
    for folder in tmp_path.glob("out-*"):
        shutil.rmtree(folder)
    for at in range(0, counting.calls, 11):
        with pytest.raises(OperationError):
            run(FaultyDisk(at=at, code=errno.ENOSPC))
        there = sorted(path.name for path in tmp_path.iterdir() if path.name not in "ab")
        assert not there or at > 0.7 * counting.calls  # names are given at the end
        for name in there:
            if name.endswith(".journal"):  # of an output that has its name
                assert any(name.startswith(f".{other}.") for other in there)
                (tmp_path / name).unlink()
                continue
            assert (tmp_path / name / "lora_lab_receipt.json").exists()
            shutil.rmtree(tmp_path / name)

    class Late:
        asked = 0

        def advance(self, *_: object) -> None: ...

        def rows(self, *_: object) -> None: ...

        def is_cancelled(self) -> bool:
            self.asked += 1
            return self.asked > 8

    with pytest.raises(CancelledError):
        run(Disk(), Late())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_grids_are_exact_decimals() -> None:
    """0:1:0.1 has the eleven numbers that a person means."""
    assert sets_of_strengths(["0:1:0.1"]) == [(place / 10,) for place in range(11)]
    assert sets_of_strengths(["1:-1:-1,0.5:1:0.5"]) == [(1, 0.5), (1, 1), (0, 0.5), (0, 1), (-1, 0.5), (-1, 1)]
    for wrong, match in (
        ("a", "no strength"),
        ("0:1", "no range"),
        ("0:1:0", "No step"),
        ("0:1:-1", "No step"),
        ("nan", "no strength"),
        ("0:1:0.001", "more than 256"),
        ("1,", "no strength"),
    ):
        with pytest.raises(LoraLabError, match=match):
            sets_of_strengths([wrong])
