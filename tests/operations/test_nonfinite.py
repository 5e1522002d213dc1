"""Merging what is not finite: refused by name, and with the word for it let through, shown and proven."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import MODULES, contents, delta_of, factors, write_adapter, write_sharded
from safetensors.torch import load_file, save_file
from storage.faulty import FaultyDisk, Killed

from lora_lab import LoraLabError, Session
from lora_lab.errors import NumericalError
from lora_lab.formats.factors import FactorReader
from lora_lab.linalg.nonfinite import settle_nonfinite
from lora_lab.operations.merge import merge
from lora_lab.operations.options import MergeOptions

FIRST, SECOND, THIRD = MODULES
DTYPES = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


def whole(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def broken_base(folder: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    """NaN of an odd pattern, and both infinities, in the first module."""
    write_sharded(folder, dtype)
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        if f"{FIRST}.weight" in tensors:
            weight = tensors[f"{FIRST}.weight"]
            weight[0, 0], weight[1, 2], weight[3, 3] = -math.nan, math.inf, -math.inf
            save_file(tensors, path, metadata={"format": "pt"})
    return folder


def broken_factors() -> dict[str, torch.Tensor]:
    """A row of ΔW of the second module is NaN, a column infinite."""
    tensors = factors()
    tensors[f"base_model.model.{SECOND}.lora_B.weight"][2, 1] = math.nan
    tensors[f"base_model.model.{SECOND}.lora_A.weight"][0, 5] = math.inf
    return tensors


@pytest.fixture
def inputs(tmp_path: Path) -> tuple[str, str]:
    return str(write_adapter(tmp_path / "adapter", broken_factors())), str(broken_base(tmp_path / "base"))


def merged(inputs: tuple[str, str], output: Path, **more: Any) -> Any:
    more = {"allow_nonfinite": True} | more
    return Session(cache=False).merge([inputs[0]], base=inputs[1], output=output, **more)


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_every_element_against_float64(dtype: torch.dtype, tmp_path: Path) -> None:
    """What is finite is the sum rounded once; what is not is what IEEE 754 makes of it, every NaN of one pattern."""
    adapter, base = write_adapter(tmp_path / "adapter", broken_factors()), broken_base(tmp_path / "base", dtype)
    merged((str(adapter), str(base)), tmp_path / "out")
    before, after = whole(base), whole(tmp_path / "out")
    for module in MODULES:
        weight = before[f"{module}.weight"].double().numpy()
        with np.errstate(invalid="ignore"):
            exact = weight + delta_of(broken_factors(), module, 2.0).numpy()
        found = after[f"{module}.weight"]
        values = found.double().numpy()
        assert (np.isnan(values) == np.isnan(exact)).all()
        assert (values[np.isinf(exact)] == exact[np.isinf(exact)]).all()
        finite = np.isfinite(exact)
        bound = torch.finfo(dtype).eps * np.abs(exact[finite])
        assert (np.abs(values[finite] - exact[finite]) <= bound + 1e-12).all()
        assert finite.all() == (module == THIRD)
        plain = torch.full((), math.nan, dtype=dtype).view(DTYPES[dtype])
        assert (found.view(DTYPES[dtype])[found.isnan()] == plain).all()


def test_receipt_and_warnings(inputs: tuple[str, str], tmp_path: Path) -> None:
    """The word stands in the receipt; undefined figures are null with a reason; the third module has its own."""
    report = merged(inputs, tmp_path / "out")
    receipt = json.loads((tmp_path / "out" / "lora_lab_receipt.json").read_text(), parse_constant=pytest.fail)
    assert receipt["arguments"]["allow_nonfinite"] is True
    rows = {row["module"]: row for row in receipt["modules"]}
    figures = ("changed_fraction", "intended_norm", "realised_norm", "realised_cosine", "effective_strength")
    assert all(rows[module][name] is None for module in (FIRST, SECOND) for name in figures)
    assert all(rows[THIRD][name] is not None for name in figures)
    shape = MODULES[FIRST]
    assert rows[FIRST]["reason"] == f"3 of {shape[0] * shape[1]} values of W′ are NaN or infinite"
    assert rows[THIRD]["reason"] is None
    told = {finding.module: finding for finding in report.findings if finding.code == "undefined_figures"}
    assert set(told) == {FIRST, SECOND}
    assert f"{FIRST}.weight" in told[FIRST].message


def test_the_same_bytes(inputs: tuple[str, str], tmp_path: Path) -> None:
    """Whatever the number of threads, after an interruption, and in memory."""
    merged(inputs, tmp_path / "out")
    wanted = contents(tmp_path / "out")
    wanted.pop("lora_lab_receipt.json")
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        merged(inputs, tmp_path / "again")
    finally:
        torch.set_num_threads(threads)
    session = Session(cache=False)
    adapter, base = session.adapter(inputs[0]), session.base(inputs[1])
    how: dict[str, Any] = {
        "reader": FactorReader(allow_nonfinite=True),
        "options": MergeOptions(allow_nonfinite=True),
    }
    with pytest.raises(Killed):
        merge([adapter], base, tmp_path / "resumed", disk=FaultyDisk(25), **how)
    merge([adapter], base, tmp_path / "resumed", resume=True, **how)
    for folder in ("again", "resumed"):
        seen = contents(tmp_path / folder)
        seen.pop("lora_lab_receipt.json")
        assert seen == wanted
    state = session.merged_state_dict([inputs[0]], base=inputs[1], allow_nonfinite=True)
    for name, tensor in whole(tmp_path / "out").items():
        assert torch.equal(state[name].view(torch.uint8), tensor.view(torch.uint8))


def test_replay_verify_and_unmerge(inputs: tuple[str, str], tmp_path: Path) -> None:
    """All three understand it; a NaN that is none, or a number that became one, is seen."""
    merged(inputs, tmp_path / "out")
    session = Session(cache=False)
    assert session.replay(tmp_path / "out", output=tmp_path / "again").verdict is True
    out = str(tmp_path / "out")
    assert session.verify(out).verdict is True
    assert session.verify(out, base=inputs[1], adapters=[inputs[0]]).verdict is True
    (tmp_path / "out" / "lora_lab_receipt.json").unlink()
    assert session.verify(out, base=inputs[1], adapters=[inputs[0]]).verdict is True
    for value, place in ((0.5, (0, 0)), (math.nan, (4, 4))):
        for path in (tmp_path / "out").glob("*.safetensors"):
            tensors = load_file(path)
            if f"{FIRST}.weight" in tensors:
                kept = path.read_bytes()
                tensors[f"{FIRST}.weight"][place] = value
                save_file(tensors, path, metadata={"format": "pt"})
                assert session.verify(out, base=inputs[1], adapters=[inputs[0]]).verdict is False
                path.write_bytes(kept)
    session.unmerge(str(tmp_path / "again"), base=inputs[1], output=tmp_path / "back")
    for path in Path(inputs[1]).glob("*.safetensors"):
        assert (tmp_path / "back" / path.name).read_bytes() == path.read_bytes()


def test_without_the_word_it_is_refused_by_name(tmp_path: Path) -> None:
    """A weight, a factor, a magnitude, a saved module that replaces and one that is added."""
    sound, base = factors(), str(write_sharded(tmp_path / "base"))
    head = {"base_model.model.classifier.weight": torch.full((2, 16), math.nan)}
    norm = {"base_model.model.model.norm.weight": torch.full((16,), math.inf)}
    scaled = {
        f"base_model.model.{module}.lora_magnitude_vector": torch.full(
            (shape[0],), math.nan if module == FIRST else 1.0
        )
        for module, shape in MODULES.items()
    }
    cases: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
        "factor": (broken_factors(), {}, f"lora_A.weight' of '{SECOND}'|lora_B.weight' of '{SECOND}'"),
        "added": (sound | head, {"modules_to_save": ["classifier"]}, "classifier.weight' that 'added' adds holds 32"),
        "replaced": (sound | norm, {"modules_to_save": ["norm"]}, "added to 'model.norm.weight' holds NaN"),
        "magnitude": (sound | scaled, {"use_dora": True}, f"added to '{FIRST}.weight' holds NaN"),
    }
    for name, (tensors, config, words) in cases.items():
        adapter = str(write_adapter(tmp_path / name, tensors, **config))
        with pytest.raises(NumericalError, match=words) as error:
            merged((adapter, base), tmp_path / "out", allow_nonfinite=False)
        assert "merge --allow-nonfinite lets it through" in error.value.hint
        assert not (tmp_path / "out").exists()
        merged((adapter, base), tmp_path / f"out-{name}")
        assert Session(cache=False).verify(str(tmp_path / f"out-{name}"), base=base, adapters=[adapter]).verdict is True
    broken = str(broken_base(tmp_path / "broken"))
    adapter = str(write_adapter(tmp_path / "sound", sound))
    with pytest.raises(NumericalError, match=f"The base's '{FIRST}.weight' holds NaN") as refused:
        merged((adapter, broken), tmp_path / "out", allow_nonfinite=False)
    assert "merge --allow-nonfinite" in refused.value.hint


def test_what_is_too_large_is_refused_even_so(tmp_path: Path) -> None:
    """A finite sum beyond float16 is no number that was let through; beside one that was it is still seen."""
    base = str(broken_base(tmp_path / "base", torch.float16))
    adapter = str(write_adapter(tmp_path / "adapter"))
    with pytest.raises(NumericalError, match=r"exceeds the range of torch\.float16"):
        merged((adapter, base), tmp_path / "out", strengths=[1e6])
    with pytest.raises(NumericalError, match="at 1 of 2 values"):
        settle_nonfinite(torch.tensor([math.inf, math.nan]), torch.tensor([1e300, math.nan], dtype=torch.float64), "w")


def test_an_undo_file_is_not_written_beside_it(inputs: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(LoraLabError, match="expected one of them"):
        merged(inputs, tmp_path / "out", undo=tmp_path / "undo")
    assert not (tmp_path / "out").exists()
