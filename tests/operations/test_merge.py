"""Merging files: what is copied, what is summed, what is refused before the first byte, and what survives a fault."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import MODULES, contents, delta_of, factors, write_adapter, write_sharded
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from storage.faulty import FULL, FaultyDisk, FlippingDisk, Killed

from lora_lab import LoraLabError, Session
from lora_lab.domain.dtypes import DType
from lora_lab.errors import CancelledError, CompatibilityError, NumericalError, OperationError
from lora_lab.formats.factors import FactorReader
from lora_lab.operations.merge import merge
from lora_lab.operations.options import MergeOptions

DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_sharded(tmp_path / "base")


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "adapter")


def whole(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def merged(adapter: Path, base: Path, output: Path, **more: Any) -> Any:
    return Session(cache=False).merge([str(adapter)], base=str(base), output=output, **more)


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_every_element_against_float64(dtype: torch.dtype, tmp_path: Path, adapter: Path) -> None:
    """Changed weights are the exact sum rounded once; all others keep their bits, their order and their header."""
    base = write_sharded(tmp_path / "base", dtype)
    merged(adapter, base, tmp_path / "out")
    before, after = whole(base), whole(tmp_path / "out")
    assert after.keys() == before.keys()
    summed = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    for name, tensor in before.items():
        module = name.removesuffix(".weight")
        if module not in MODULES:
            assert after[name].equal(tensor)
            continue
        delta = delta_of(factors(), module, 2.0).numpy()
        exact = tensor.double().numpy() + delta
        size = np.abs(tensor.double().numpy()) + np.abs(delta)
        bound = torch.finfo(dtype).eps / 2 * np.abs(exact) + 16 * summed * size
        assert (np.abs(after[name].double().numpy() - exact) <= bound).all()
    for path in base.glob("*.safetensors"):
        with safe_open(path, "pt") as one, safe_open(tmp_path / "out" / path.name, "pt") as other:
            assert (one.metadata(), one.keys()) == (other.metadata(), other.keys())
        length = 8 + int.from_bytes(path.read_bytes()[:8], "little")
        assert (tmp_path / "out" / path.name).read_bytes()[:length] == path.read_bytes()[:length]


def test_what_goes_along_and_what_does_not(adapter: Path, base: Path, tmp_path: Path) -> None:
    """Index, configuration, tokenizer and folders are copied; other forms of the weights are left behind and named."""
    report = merged(adapter, base, tmp_path / "out")
    files = contents(tmp_path / "out")
    assert files.keys() == contents(base).keys() - {"pytorch_model.bin", ".hidden"} | {"lora_lab_receipt.json"}
    for name in ("config.json", "tokenizer.json", "sub/notes.txt", "model.safetensors.index.json"):
        assert files[name] == contents(base)[name]
    (finding,) = [one for one in report.findings if one.code == "weights_left_behind"]
    assert "pytorch_model.bin" in finding.message


def test_the_receipt_is_what_was_printed_and_true(adapter: Path, base: Path, tmp_path: Path) -> None:
    """Every file's hash is that of its bytes; the document is the one that --json prints."""
    report = merged(adapter, base, tmp_path / "out", strengths=[0.5])
    receipt = json.loads((tmp_path / "out" / "lora_lab_receipt.json").read_text())
    assert receipt == json.loads(json.dumps(report.to_json()))
    assert (receipt["operation"], receipt["arguments"]["strengths"]) == ("merge", [0.5])
    for entry in receipt["outputs"]:
        content = (tmp_path / "out" / entry["path"]).read_bytes()
        assert (hashlib.sha256(content).hexdigest(), len(content)) == (entry["sha256"], entry["size_bytes"])
    assert {entry["path"] for entry in receipt["outputs"]} | {"lora_lab_receipt.json"} == set(
        contents(tmp_path / "out")
    )
    before = whole(base)
    for row in receipt["modules"]:
        raw = before[row["tensor"]].view(torch.uint8).numpy().tobytes()
        assert row["base_sha256"] == hashlib.sha256(raw).hexdigest()
    assert [entry["locator"] for entry in receipt["inputs"]] == [str(adapter), str(base)]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_another_dtype_is_of_every_weight(dtype: str, adapter: Path, base: Path, tmp_path: Path) -> None:
    """All float weights change their type, integers do not; index and configuration say so too."""
    merged(adapter, base, tmp_path / "out", dtype=dtype)
    after = whole(tmp_path / "out")
    assert {str(tensor.dtype) for name, tensor in after.items() if name != "model.steps"} == {f"torch.{dtype}"}
    assert after["model.steps"].equal(torch.arange(3))
    assert after["model.norm.weight"].equal(torch.ones(16, dtype=getattr(torch, dtype)))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == dtype
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in after.values())
    assert Session(cache=False).base(str(tmp_path / "out")).findings == ()


def test_order_and_cancellation(base: Path, tmp_path: Path) -> None:
    """A and B are B and A; strengths that cancel give the base back, bit for bit."""
    first, second = (write_adapter(tmp_path / name, seed=seed) for name, seed in (("a", 1), ("b", 2)))
    session = Session(cache=False)
    for name, adapters in (("ab", [first, second]), ("ba", [second, first])):
        session.merge([str(adapter) for adapter in adapters], base=str(base), output=tmp_path / name)
    for name, tensor in whole(tmp_path / "ab").items():
        torch.testing.assert_close(whole(tmp_path / "ba")[name], tensor, rtol=0, atol=0)
    session.merge([str(first), str(first)], base=str(base), output=tmp_path / "none", strengths=[1, -1])
    assert all(tensor.equal(whole(base)[name]) for name, tensor in whole(tmp_path / "none").items())


def test_small_updates_are_told(base: Path, tmp_path: Path) -> None:
    """Where bf16 swallows the update, a finding says how much arrives and what helps; stochastic rounding helps."""
    small = {name: 0.006 * tensor for name, tensor in factors().items()}
    adapter = write_adapter(tmp_path / "small", small)
    report = merged(adapter, base, tmp_path / "out")
    (finding,) = [one for one in report.findings if one.code == "poor_fidelity"]
    assert "--dtype float32 keeps it" in finding.message
    wide = merged(adapter, base, tmp_path / "wide", dtype="float32")
    assert "poor_fidelity" not in {one.code for one in wide.findings}
    chance = merged(adapter, base, tmp_path / "chance", rounding="stochastic")
    rows = chance.table("modules").rows
    assert np.mean([row["effective_strength"] for row in rows]) == pytest.approx(1.0, abs=0.3)
    again = Session(cache=False, seed=0).merge(
        [str(adapter)], base=str(base), output=tmp_path / "again", rounding="stochastic"
    )
    assert [row["sha256"] for row in again.table("outputs").rows] == [
        row["sha256"] for row in chance.table("outputs").rows
    ]


def shifted(folder: Path, **tensors: torch.Tensor) -> Path:
    return write_adapter(folder, {**factors(), **tensors})


BAD: dict[str, tuple[dict[str, Any], type[LoraLabError], str]] = {
    "strengths": ({"strengths": [1, 2]}, LoraLabError, "Got 2 strengths for 1 adapters"),
    "not a number": ({"strengths": [float("nan")]}, LoraLabError, "The strength is nan"),
    "dtype": ({"dtype": "int8"}, LoraLabError, "The dtype is 'int8', expected one of"),
    "rounding": ({"rounding": "up"}, LoraLabError, "The rounding is 'up'"),
    "overflow": ({"strengths": [1e6], "dtype": "float16"}, NumericalError, "exceeds the range of torch.float16"),
    "no such folder": ({"output": "nowhere/out"}, OperationError, "is not there"),
}


@pytest.mark.parametrize(("more", "kind", "fragment"), BAD.values(), ids=BAD.keys())
def test_bad_wishes(
    more: dict[str, Any], kind: type[LoraLabError], fragment: str, adapter: Path, base: Path, tmp_path: Path
) -> None:
    """One sentence, and nothing is there afterwards."""
    place = tmp_path / "place"
    place.mkdir()
    wishes = {**more, "output": place / more.get("output", "out")}
    with pytest.raises(kind) as caught:
        merged(adapter, base, **wishes)
    assert fragment in caught.value.message
    assert list(place.iterdir()) == []


def test_modules_without_a_place(base: Path, tmp_path: Path) -> None:
    """They stop the merge with a suggestion; --partial leaves them out by name."""
    extra = {
        f"base_model.model.model.layers.2.self_attn.q_prof.lora_{side}.weight": torch.ones(shape)
        for side, shape in (("A", (4, 16)), ("B", (24, 4)))
    }
    adapter = shifted(tmp_path / "more", **extra)
    with pytest.raises(CompatibilityError, match="1 of 4 modules of 'more' are not in 'base'") as caught:
        merged(adapter, base, tmp_path / "out")
    assert "'model.layers.2.self_attn.q_prof' may be 'model.layers.2.self_attn.q_proj'" in caught.value.hint
    report = merged(adapter, base, tmp_path / "out", partial=True)
    assert "--partial" in caught.value.hint
    assert "q_prof" in next(one.message for one in report.findings if one.code == "left_out")
    lost = write_adapter(tmp_path / "lost", factors({"encoder.query": (24, 16)}))
    with pytest.raises(CompatibilityError, match="1 of 1 modules of 'lost'") as caught:
        merged(lost, base, tmp_path / "none", partial=True)
    assert "--partial" not in caught.value.hint  # nothing would be left to merge


def test_a_base_of_other_shapes(adapter: Path, tmp_path: Path) -> None:
    """The first clash is told with both shapes."""
    base = tmp_path / "wide"
    base.mkdir()
    save_file({f"{module}.weight": torch.ones(30, 16) for module in MODULES}, base / "model.safetensors")
    with pytest.raises(CompatibilityError, match=r"3 modules .* has ΔW \[24, 16\], got a weight \[30, 16\]"):
        merged(adapter, base, tmp_path / "out")


def test_quantised_bases_are_refused_by_name(adapter: Path, tmp_path: Path) -> None:
    """Nothing is added into codes."""
    base = tmp_path / "codes"
    base.mkdir()
    save_file(
        {f"{module}.weight": torch.ones(shape, dtype=torch.int8) for module, shape in MODULES.items()},
        base / "model.safetensors",
    )
    with pytest.raises(CompatibilityError, match="'codes' is quantised"):
        merged(adapter, base, tmp_path / "out")


def run(adapter: Path, base: Path, output: Path, disk: FaultyDisk, *, resume: bool = False) -> None:
    session = Session(cache=False)
    merge(
        [session.adapter(str(adapter))],
        session.base(str(base)),
        output,
        reader=FactorReader(),
        options=MergeOptions(dtype=DType.F32),
        overwrite=True,
        resume=resume,
        disk=disk,
    )


@pytest.mark.parametrize("fault", ["full", "killed", "power"])
def test_a_fault_at_any_call(fault: str, adapter: Path, base: Path, tmp_path: Path) -> None:
    """The old output or the new one at every moment; gone on with, the bytes of an undisturbed run."""
    undisturbed = tmp_path / "undisturbed"
    counted = FaultyDisk()
    run(adapter, base, undisturbed, counted)
    wanted = {name: content for name, content in contents(undisturbed).items() if name != "lora_lab_receipt.json"}
    for at in range(0, counted.calls, 3):
        place = tmp_path / f"{fault}-{at}"
        place.mkdir()
        (place / "out").mkdir()
        (place / "out" / "old").write_text("old")
        disk = FaultyDisk(at, FULL if fault == "full" else 0, is_losing=fault == "power")
        with suppress(OperationError, Killed):
            run(adapter, base, place / "out", disk)
        seen = contents(place / "out")
        seen.pop("lora_lab_receipt.json", None)
        assert seen in ({"old": b"old"}, wanted), at
        with suppress(OperationError):  # "was completed by the run that was interrupted"
            run(adapter, base, place / "out", FaultyDisk(), resume=True)
        seen = contents(place / "out")
        seen.pop("lora_lab_receipt.json")
        assert seen == wanted, at
        assert [path.name for path in place.iterdir()] == ["out"], at


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", ["base", "lora_A", "lora_B"])
def test_what_is_not_finite_is_refused(value: float, where: str, base: Path, tmp_path: Path) -> None:
    """In a weight that is changed or in a factor: one sentence with the name, and nothing is there afterwards."""
    module = next(iter(MODULES))
    tensors = factors()
    if where == "base":
        (path,) = [path for path in base.glob("*.safetensors") if f"{module}.weight" in load_file(path)]
        damaged = load_file(path)
        damaged[f"{module}.weight"][3, 3] = value
        save_file(damaged, path, metadata={"format": "pt"})
    else:
        tensors[f"base_model.model.{module}.{where}.weight"][0, 0] = value
    place = tmp_path / "place"
    place.mkdir()
    with pytest.raises(NumericalError, match=module.replace(".", r"\.")):
        merged(write_adapter(tmp_path / "adapter", tensors), base, place / "out")
    assert not (place / "out").exists()


@pytest.mark.parametrize("name", ["model-00001-of-00002.safetensors", "config.json"])
def test_a_bit_that_turns_on_the_disk(name: str, adapter: Path, base: Path, tmp_path: Path) -> None:
    """What does not come back as it was written gets no name; with a sound disk the run goes on to the right bytes."""
    place = tmp_path / "place"
    place.mkdir()
    session = Session(cache=False)
    opened = [session.adapter(str(adapter))], session.base(str(base))
    with pytest.raises(OperationError, match="does not come back from the disk as it was written"):
        merge(*opened, place / "out", reader=FactorReader(), disk=FlippingDisk(name, 1))
    assert not (place / "out").exists()
    merge(*opened, place / "out", reader=FactorReader(), resume=True)
    merge(*opened, tmp_path / "sound", reader=FactorReader())
    seen, wanted = contents(place / "out"), contents(tmp_path / "sound")
    assert {key: seen[key] for key in wanted if "receipt" not in key} == {
        key: wanted[key] for key in wanted if "receipt" not in key
    }


def test_a_resumed_run_reports_the_whole(adapter: Path, base: Path, tmp_path: Path) -> None:
    """Fidelity and hashes of files that an earlier run finished are in the receipt too."""
    first = merged(adapter, base, tmp_path / "first")
    counted = FaultyDisk()
    session = Session(cache=False)
    opened = [session.adapter(str(adapter))], session.base(str(base))
    merge(*opened, tmp_path / "counted", reader=FactorReader(), disk=counted)
    with pytest.raises(Killed):
        merge(*opened, tmp_path / "out", reader=FactorReader(), disk=FaultyDisk(counted.calls - 12))
    report = merge(*opened, tmp_path / "out", reader=FactorReader(), resume=True)
    assert report.table("modules").rows == first.table("modules").rows
    assert [row["sha256"] for row in report.table("outputs").rows] == [
        row["sha256"] for row in first.table("outputs").rows
    ]


class Impatient:
    """Wants it no longer after some steps."""

    def __init__(self, after: int) -> None:
        self.left = after

    def advance(self, done: int, total: int, what: str) -> None:
        self.left -= 1

    def rows(self, table: str, rows: Any) -> None: ...

    def is_cancelled(self) -> bool:
        return self.left <= 0


def test_cancelled_means_gone(adapter: Path, base: Path, tmp_path: Path) -> None:
    """Nothing half-made is left."""
    place = tmp_path / "place"
    place.mkdir()
    with pytest.raises(CancelledError):
        merged(adapter, base, place / "out", observer=Impatient(2))
    assert list(place.iterdir()) == []


def test_a_dry_run_writes_nothing(adapter: Path, base: Path, tmp_path: Path) -> None:
    """It says the sizes that the real run then has."""
    plan = merged(adapter, base, tmp_path / "out", dry_run=True)
    assert not (tmp_path / "out").exists()
    real = merged(adapter, base, tmp_path / "out")
    sizes = {row["path"]: row["size_bytes"] for row in real.table("outputs").rows}
    assert {row["path"]: row["size_bytes"] for row in plan.table("outputs").rows} == sizes
    names = [set(entry["sha256"]) for entry in plan.to_json()["inputs"]]  # read so far: headers and configuration
    assert names[0] == {"adapter_config.json", "adapter_model.safetensors#header"}
    assert len(names[1]) == len(list(base.glob("*.safetensors")))
    assert all(name.endswith(".safetensors#header") for name in names[1])
    planned = plan.to_json()["plan"]
    assert planned["bytes_free"] > 0
    assert planned["bytes_to_write"] == sum(sizes.values())
    assert planned["tensors_to_change"] == len(MODULES)


def test_tied_layers_part_where_one_changes(tmp_path: Path) -> None:
    """An adapter on the output layer leaves the embedding alone; the configuration no longer ties them."""
    base = tmp_path / "tied"
    base.mkdir()
    embedding = torch.randn(16, 8, generator=torch.Generator().manual_seed(1))
    save_file({"model.embed_tokens.weight": embedding}, base / "model.safetensors", metadata={"format": "pt"})
    (base / "config.json").write_text(json.dumps({"tie_word_embeddings": True}))
    tensors = factors({"lm_head": (16, 8)})
    adapter = write_adapter(tmp_path / "head", tensors, target_modules=["lm_head"])
    report = merged(adapter, base, tmp_path / "out")
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert after["model.embed_tokens.weight"].equal(embedding)
    expected = embedding.double() + delta_of(tensors, "lm_head", 2.0)
    torch.testing.assert_close(after["lm_head.weight"].double(), expected, rtol=1e-6, atol=1e-6)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    assert [row["tensor"] for row in report.table("added").rows] == ["lm_head.weight"]
