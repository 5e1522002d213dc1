"""One library API: the same answers for every shell, remembered while files stay as they are."""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import MODULES, delta_of, factors, write_adapter, write_base
from safetensors.torch import load_file

import lora_lab
from lora_lab import LoraLabError, Session
from lora_lab.domain.adapter import Adapter
from lora_lab.domain.base import Base
from lora_lab.domain.library import EntryKind
from lora_lab.errors import FileFormatError, MissingFileError
from lora_lab.session import records
from lora_lab.storage.folders import cache_folder


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """Two good adapters, a base, and one of each kind of trouble."""
    folder = tmp_path / "library"
    write_adapter(folder / "a-10", seed=1)
    write_adapter(folder / "a-2", seed=2, use_rslora=True)
    write_base(folder / "base")
    half = {name: tensor for name, tensor in factors().items() if "lora_B" not in name}
    write_adapter(folder / "half", half)
    write_adapter(folder / "cut")
    weights = folder / "cut" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    write_adapter(folder / "wrong-type", lora_alpha="16")
    return folder


def test_everything_is_listed_in_natural_order(library: Path) -> None:
    """Good and broken stand side by side, the broken with their reasons."""
    entries = list(Session().scan(str(library)))
    assert [entry.name for entry in entries] == ["a-2", "a-10", "base", "cut", "half", "wrong-type"]
    by_name = {entry.name: entry for entry in entries}
    assert by_name["base"].kind is EntryKind.BASE
    assert by_name["base"].parameters == sum(math.prod(shape) for shape in MODULES.values())
    assert by_name["a-2"].error is None
    assert "rslora" in by_name["a-2"].features
    assert (by_name["a-2"].rank_min, by_name["a-2"].alpha, by_name["a-2"].dtype) == (4, 8.0, "F32")
    assert "missing" in (by_name["cut"].error or "")
    assert "lora_B" in (by_name["half"].error or "")
    assert "lora_alpha" in (by_name["wrong-type"].error or "")


def test_a_listing_is_remembered_until_a_file_changes(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second listing opens no good file; touching one opens that one."""
    first = list(Session().scan(str(library)))
    opened: list[str] = []
    original = Session.adapter
    monkeypatch.setattr(Session, "adapter", lambda self, locator: opened.append(locator) or original(self, locator))
    again = list(Session().scan(str(library)))
    assert again == first
    assert [type(entry.kind) for entry in again] == [EntryKind] * len(again)
    assert [Path(name).name for name in opened] == ["cut", "half", "wrong-type"]
    opened.clear()
    os.utime(library / "a-2" / "adapter_model.safetensors", ns=(1, 1))
    again = list(Session().scan(str(library)))
    assert [Path(name).name for name in opened] == ["a-2", "cut", "half", "wrong-type"]
    assert [entry.name for entry in again] == [entry.name for entry in first]


def test_a_remembered_listing_is_whole_and_follows_the_way_it_is_named(
    library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listing from memory has the same rows, under the path that was typed this time."""
    first = Session().ls(str(library)).to_json()
    monkeypatch.chdir(library)
    second = Session().ls(".").to_json()
    for shelf in ("adapters", "bases"):
        assert [row["name"] for row in second[shelf]] == [row["name"] for row in first[shelf]] != []
        assert all(Path(row["path"]).exists() and not Path(row["path"]).is_absolute() for row in second[shelf])


def test_spectrum_is_that_of_the_dense_product(tmp_path: Path) -> None:
    """Every digit against numpy's SVD of scaling·B·A in float64."""
    tensors = factors(seed=5)
    report = Session().spectrum(str(write_adapter(tmp_path / "a", tensors, alpha=12)))
    rows = {row["module"]: row for row in report.table("modules").rows}
    assert list(rows) == [
        "model.layers.2.self_attn.q_proj",
        "model.layers.2.self_attn.v_proj",
        "model.layers.10.self_attn.q_proj",
    ]
    for module, row in rows.items():
        expected = np.linalg.svd(delta_of(tensors, module, 12 / 4).numpy(), compute_uv=False)[:4]
        np.testing.assert_allclose(row["singular_values"], expected, rtol=0, atol=1e-10 * expected[0])


@pytest.mark.parametrize(
    "dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.bfloat16, torch.float64]
)
def test_every_stored_type_is_computed_in_float64(dtype: torch.dtype, tmp_path: Path) -> None:
    """What is stored is taken as exact, whatever its width."""
    tensors = {name: tensor.to(dtype) for name, tensor in factors(seed=7).items()}
    report = Session().spectrum(str(write_adapter(tmp_path / "a", tensors)))
    for row in report.table("modules").rows:
        expected = np.linalg.svd(delta_of(tensors, row["module"], 2.0).numpy(), compute_uv=False)[:4]
        np.testing.assert_allclose(row["singular_values"], expected, rtol=0, atol=1e-10 * expected[0])


def test_inputs_carry_the_hash_of_what_was_read(tmp_path: Path) -> None:
    """sha256 of every file, beside the locator as typed."""
    folder = write_adapter(tmp_path / "a")
    (record,) = Session().spectrum(str(folder)).inputs
    assert record.locator == str(folder)
    assert record.sha256 == {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in ("adapter_config.json", "adapter_model.safetensors")
    }


def test_a_result_is_remembered_until_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second time no tensor is read; a touched file is read again; a corrupt cache is ignored."""
    from lora_lab.formats import factors as room

    folder = write_adapter(tmp_path / "a")
    first = Session().spectrum(str(folder))
    reads: list[int] = []
    original = room.FactorReader.factors_of
    monkeypatch.setattr(room.FactorReader, "factors_of", lambda self, deltas: reads.append(1) or original(self, deltas))
    assert Session().spectrum(str(folder)) == first
    assert reads == []
    assert Session(cache=False).spectrum(str(folder)) == first
    assert len(reads) == 1
    os.utime(folder / "adapter_model.safetensors", ns=(5, 5))
    assert Session().spectrum(str(folder)) == first
    assert len(reads) == 2
    for kept in Path(os.environ["LORA_LAB_CACHE_DIR"]).rglob("*.json"):
        kept.write_text("{")
    assert Session().spectrum(str(folder)) == first
    assert len(reads) == 3


def test_modules_can_be_chosen(tmp_path: Path) -> None:
    """A glob restricts the rows; one that matches nothing is an error that names a module."""
    folder = str(write_adapter(tmp_path / "a"))
    rows = Session().spectrum(folder, modules=["v_proj"]).table("modules").rows
    assert [row["module"] for row in rows] == ["model.layers.2.self_attn.v_proj"]
    with pytest.raises(LoraLabError, match="layers"):
        Session().spectrum(folder, modules=["nothing"])


def test_a_zero_adapter_has_a_zero_spectrum_and_says_so(tmp_path: Path) -> None:
    """Zeros, no NaN, undefined ranks, a warning for each module; inspect sees the zeros without arithmetic."""
    tensors = {name: tensor * ("lora_A" in name) for name, tensor in factors().items()}
    folder = str(write_adapter(tmp_path / "zero", tensors))
    report = Session().spectrum(folder)
    for row in report.table("modules").rows:
        assert row["singular_values"] == [0.0] * 4
        assert row["stable_rank"] is None
        assert row["effective_rank"] is None
    assert [finding.code for finding in report.findings].count("zero_delta") == 3
    inspected = Session().inspect(folder)
    assert [finding.code for finding in inspected.findings].count("zero_lora_B") == 3


def test_nan_names_the_module(tmp_path: Path) -> None:
    """One NaN is found, named and counted, and the other modules have their spectra."""
    tensors = factors()
    tensors["base_model.model.model.layers.10.self_attn.q_proj.lora_B.weight"][3, 1] = torch.nan
    report = Session().spectrum(str(write_adapter(tmp_path / "a", tensors)))
    module = "model.layers.10.self_attn.q_proj"
    (finding,) = (finding for finding in report.findings if finding.code == "not_finite")
    assert (finding.module, "lora_B" in finding.message, "1 value that is" in finding.message) == (module, True, True)
    rows = report.table("modules").rows
    assert [row["module"] for row in rows if row["singular_values"] is None] == [module]
    assert len(rows) == 3


def test_open_tells_adapters_from_bases(library: Path) -> None:
    """One call opens either."""
    assert isinstance(Session().open(str(library / "a-2")), Adapter)
    assert isinstance(Session().open(str(library / "base")), Base)


def test_inspect_of_a_base_lists_its_tensors(library: Path) -> None:
    """Name, shape and count of every tensor."""
    document = Session().inspect(str(library / "base")).to_json()
    assert document["architecture"] == "LlamaForCausalLM"
    assert {row["module"].removesuffix(".weight") for row in document["modules"]} == set(MODULES)


@pytest.mark.parametrize(
    ("call", "fragment"),
    [
        (lambda session, place: session.analyze("nothing", [place]), "spectrum"),
        (lambda session, place: session.analyze("spectrum", []), "0 inputs, expected 1"),
        (lambda session, place: session.analyze("spectrum", [place, place]), "2 inputs, expected 1"),
        (lambda session, place: session.analyze("spectrum", [place], base=place), "takes no base"),
        (lambda session, place: session.analyze("spectrum", [place], parameters={"x": "1"}), "'x'"),
        (lambda session, place: Session(device="abacus").spectrum(place), "abacus"),
    ],
)
def test_wrong_requests_are_sentences(tmp_path: Path, call: object, fragment: str) -> None:
    """What does not fit is refused by name."""
    with pytest.raises(LoraLabError, match=fragment):
        call(Session(), str(write_adapter(tmp_path / "a")))  # type: ignore[operator]


def test_a_place_that_is_not_there(tmp_path: Path) -> None:
    """Named, with a next step."""
    with pytest.raises(MissingFileError, match="does not exist") as caught:
        Session().adapter(str(tmp_path / "nowhere"))
    assert caught.value.hint


def test_public_names_are_those_promised() -> None:
    """What may be imported from the package is a decision, not an accident."""
    assert lora_lab.__all__ == sorted(lora_lab.__all__)
    assert all(getattr(lora_lab, name) is not None for name in lora_lab.__all__)
    with pytest.raises(AttributeError):
        _ = lora_lab.nothing


def test_a_configuration_alone_is_a_base_without_tensors(tmp_path: Path) -> None:
    """The file, or a folder with nothing else, tells shapes; a folder with weights is the weights."""
    folder = write_base(tmp_path / "base")
    assert Session().base(str(folder)).tensors
    alone = Session().base(str(folder / "config.json"))
    assert (dict(alone.tensors), alone.configuration) == ({}, {"architectures": ["LlamaForCausalLM"]})
    (folder / "model.safetensors").unlink()
    assert Session().base(str(folder)).path == str(folder / "config.json")
    (folder / "config.json").write_text("[]")
    with pytest.raises(FileFormatError, match="is no object of settings"):
        Session().base(str(folder))


def test_a_large_checkpoint_is_known_by_its_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What counts is the size of all shards together: a hundred shards just below the limit are not hashed."""
    base = Session().base(str(write_base(tmp_path / "base")))
    assert set(records.record_of(base).sha256) == {"model.safetensors"}
    halves = replace(base, shards=(base.shards[0], replace(base.shards[0])))
    monkeypatch.setattr(records, "_HASHED_WHOLE_BYTES", base.size_bytes + 1)
    assert set(records.record_of(base).sha256) == {"model.safetensors"}
    assert set(records.record_of(halves).sha256) == {"model.safetensors#header"}


def test_a_device_that_is_of_no_use_is_told(tmp_path: Path) -> None:
    """An analysis that computes on the processor says so when another device is asked for, and looks for none."""
    both = [str(write_adapter(tmp_path / name, seed=seed)) for name, seed in (("a", 1), ("b", 2))]
    asked = Session(cache=False, device="cuda").analyze("overlap", both)
    assert [finding.code for finding in asked.findings] == ["on_processor"]
    assert "'cuda' is of no use" in asked.findings[0].message
    plain = Session(cache=False).analyze("overlap", both)
    assert plain.findings == ()
    assert asked.table("modules").rows == plain.table("modules").rows


def test_a_remembered_report_tells_the_store_as_it_is_now(tmp_path: Path) -> None:
    """What is kept of bases is a fact about the disk: another base's decompositions, or an emptied folder, are seen."""
    adapter = str(write_adapter(tmp_path / "a"))
    bases = [str(write_base(tmp_path / f"base-{seed}", seed=seed)) for seed in (1, 2)]
    session = Session()

    def kept() -> int:
        report = session.analyze("intruders", [adapter], base=bases[0])
        return int(report.to_json()["totals"]["cache_bytes"])

    before = kept()
    session.analyze("intruders", [adapter], base=bases[1])
    assert kept() == pytest.approx(2 * before, rel=0.01)
    for file in (cache_folder() / "arrays").iterdir():
        file.unlink()
    assert kept() == 0


def test_a_merged_state_dict_is_what_files_hold(tmp_path: Path) -> None:
    """Bit for bit, at any strength."""
    base, adapter = write_base(tmp_path / "base"), write_adapter(tmp_path / "one", factors(seed=1))
    how = {"strengths": [0.3], "dtype": "bfloat16", "rounding": "stochastic"}
    session = Session(seed=5, cache=False)
    session.merge([str(adapter)], base=str(base), output=tmp_path / "out", **how)
    found = session.merged_state_dict([str(adapter)], base=str(base), **how)
    wanted = load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == wanted.keys()
    assert all(found[name].equal(wanted[name]) for name in wanted)


def test_little_work_stays_on_the_processor_where_the_device_is_for_the_session_to_choose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A spectrum of 4·r² operations a row goes to a device when they are many, or when it is asked for."""
    from lora_lab.analyses.spectrum import Spectrum
    from lora_lab.linalg import device

    place = str(write_adapter(tmp_path / "a"))
    session = Session(cache=False)
    adapter = session.adapter(place)
    rows = sum(sum(shape) for shape in MODULES.values())
    assert Spectrum().operations([adapter], ()) == 4 * 4**2 * rows
    assert Spectrum().operations([adapter], ["*v_proj"]) == 4 * 4**2 * (8 + 16)
    asked: list[str] = []
    monkeypatch.setattr(device, "resolve_device", lambda text: asked.append(text) or "cpu")
    session.spectrum(place)
    assert asked == []
    Session(cache=False, device="cpu").spectrum(place)
    assert asked == ["cpu"]
    monkeypatch.setattr(device, "DEVICE_PAYS_OPERATIONS", 10.0)
    session.spectrum(place)
    assert asked == ["cpu", "auto"]
