"""Undo files: with one, the adapters and the merged model every file of weights comes back with its own sha256."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import MODULES, contents, factors, write_adapter, write_sharded
from peft import LoraConfig, get_peft_model
from peft_models import Mixture, Net
from safetensors.torch import load_file, save_file
from storage.faulty import FULL, FaultyDisk, Killed
from torch import nn

from lora_lab import LoraLabError, Session
from lora_lab.errors import CompatibilityError, FileFormatError, OperationError
from lora_lab.formats.factors import FactorReader
from lora_lab.linalg import residual_coding
from lora_lab.operations.merge import merge
from lora_lab.operations.undo import open_undo

BESIDE = {"lora_lab_receipt.json", "pytorch_model.bin", ".hidden"}


@pytest.fixture
def session() -> Session:
    return Session(cache=False)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "adapter")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_sharded(tmp_path / "base")


def model_files(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in contents(folder).items() if name not in BESIDE}


def there_and_back(session: Session, adapters: list[Path], base: Path, place: Path, **how: Any) -> dict[str, Any]:
    """Merge with an undo file, unmerge with it, and compare every byte of every file; what the receipt says of it."""
    names = [str(adapter) for adapter in adapters]
    report = session.merge(names, base=str(base), output=place / "merged", undo=place / "undo", **how)
    back = session.unmerge(str(place / "merged"), output=place / "back", undo=place / "undo")
    assert model_files(place / "back") == model_files(base)
    assert model_files(place / "merged") != model_files(base)
    assert back.to_json()["proof"]["exact"] is True
    assert not back.findings
    found: dict[str, Any] = report.to_json()["undo"]
    assert found["size_bytes"] == (place / "undo").stat().st_size
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_every_byte_comes_back(dtype: torch.dtype, session: Session, tmp_path: Path) -> None:
    """Of shards, index and configuration, of two adapters with strengths."""
    base = write_sharded(tmp_path / "base", dtype)
    adapters = [write_adapter(tmp_path / name, seed=seed) for name, seed in (("one", 1), ("two", 2))]
    there_and_back(session, adapters, base, tmp_path, strengths=[0.7, -0.01])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_special_weights_come_back(dtype: torch.dtype, session: Session, adapter: Path, tmp_path: Path) -> None:
    """Zeros of both signs, subnormal numbers, and what no sum with ΔW can hold."""
    base = tmp_path / "base"
    base.mkdir()
    info = torch.finfo(dtype)
    special = torch.tensor([0.0, -0.0, info.smallest_normal / 4, -info.smallest_normal / 2, info.max / 2, 1e-30])
    tensors = {f"{name}.weight": torch.zeros(shape, dtype=dtype) for name, shape in MODULES.items()}
    for tensor in tensors.values():
        tensor.view(-1)[:6] = special.to(dtype)
    save_file(tensors, base / "model.safetensors")
    there_and_back(session, [adapter], base, tmp_path)


def test_stochastic_rounding_is_undone(session: Session, adapter: Path, base: Path, tmp_path: Path) -> None:
    """Chance moved the merged weights by up to a unit in the last place; the residual knows."""
    there_and_back(session, [adapter], base, tmp_path, rounding="stochastic")


@pytest.mark.parametrize(("stored", "dtype"), [(torch.bfloat16, "float32"), (torch.float16, "float64")])
def test_a_wider_output_is_undone(
    stored: torch.dtype, dtype: str, session: Session, adapter: Path, tmp_path: Path
) -> None:
    """The base's types come back, and index and configuration say so again."""
    base = write_sharded(tmp_path / "base", stored)
    there_and_back(session, [adapter], base, tmp_path, dtype=dtype)


@pytest.mark.parametrize(("stored", "dtype"), [("F32", "bfloat16"), ("BF16", "float16"), ("F16", "bfloat16")])
def test_a_narrower_output_is_refused(stored: str, dtype: str, session: Session, adapter: Path, tmp_path: Path) -> None:
    """Bits that the output cannot hold are gone; said before anything is written."""
    types = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
    base = write_sharded(tmp_path / "base", types[stored])
    place = tmp_path / "place"
    place.mkdir()
    with pytest.raises(CompatibilityError, match=rf"is {stored} in the base .* no undo file can give them back"):
        session.merge([str(adapter)], base=str(base), output=place / "out", undo=place / "undo", dtype=dtype)
    assert list(place.iterdir()) == []


def test_long_tensors_are_many_chunks(session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks and chunks that do not begin together."""
    monkeypatch.setattr(residual_coding, "CHUNK_ELEMENTS", 10_007)
    monkeypatch.setattr("lora_lab.operations.undo.CHUNK_ELEMENTS", 10_007)
    base = tmp_path / "base"
    base.mkdir()
    weight = 0.02 * torch.randn(300, 1100, generator=torch.Generator().manual_seed(3))
    save_file({"model.layers.0.q_proj.weight": weight.bfloat16()}, base / "model.safetensors")
    tensors = {name: 0.05 * one for name, one in factors({"model.layers.0.q_proj": (300, 1100)}).items()}
    found = there_and_back(session, [write_adapter(tmp_path / "adapter", tensors)], base, tmp_path)
    assert 0 < found["changed_fraction"] < 0.5
    assert 0 < found["bits_per_weight"] < 4


# Everything that adapters are made of.


def trained(folder: Path, network: type[nn.Module], dtype: torch.dtype, **settings: Any) -> tuple[Path, Path]:
    """A base, and an adapter that PEFT has written."""
    torch.manual_seed(3)
    net = network()
    base = folder / "base"
    base.mkdir(parents=True)
    save_file({name: tensor.to(dtype) for name, tensor in net.state_dict().items()}, base / "model.safetensors")
    (base / "config.json").write_text(json.dumps({"model_type": "test"}))
    model = get_peft_model(net, LoraConfig(**{"r": 4, "lora_alpha": 6, **settings}))
    generator = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad or "lora_" in name:
            parameter.data.add_(0.3 * torch.randn(parameter.shape, generator=generator).abs())
    model.save_pretrained(folder / "adapter")
    return base, folder / "adapter"


KINDS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "patterns": (Net, {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"v_proj": 3}, "use_rslora": True}),
    "transposed": (Net, {"target_modules": ["c_attn", "embed"], "fan_in_fan_out": True}),
    "convolutions": (Net, {"target_modules": ["conv", "point", "line"]}),
    "dora": (Net, {"target_modules": ["q_proj", "conv", "embed"], "use_dora": True}),
    "dora by column": (Net, {"target_modules": ["c_attn"], "fan_in_fan_out": True, "use_dora": True}),
    "biases": (Net, {"target_modules": ["q_proj"], "bias": "all"}),
    "lora_bias": (Net, {"target_modules": ["q_proj"], "lora_bias": True}),
    "modules_to_save": (Net, {"target_modules": ["q_proj"], "modules_to_save": ["classifier"]}),
    "tokens": (Net, {"target_modules": ["q_proj"], "trainable_token_indices": {"embed": [7, 2]}}),
    "experts": (Mixture, {"target_modules": [], "target_parameters": ["experts.gate_up_proj"]}),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_change_is_undone(kind: str, dtype: torch.dtype, session: Session, tmp_path: Path) -> None:
    """Whatever of PEFT's changes a weight, at half its strength."""
    network, settings = KINDS[kind]
    base, adapter = trained(tmp_path, network, dtype, **settings)
    there_and_back(session, [adapter], base, tmp_path, strengths=[0.5])


@pytest.mark.filterwarnings("ignore")
def test_dora_beside_a_plain_delta(session: Session, tmp_path: Path) -> None:
    """Two adapters on one weight, one multiplying it; the order of the recipe is the file's, not the person's."""
    settings = {"target_modules": ["q_proj"], "use_dora": True}
    base, dora = trained(tmp_path / "a", Net, torch.bfloat16, **settings)
    _, plain = trained(tmp_path / "b", Net, torch.bfloat16, target_modules=["q_proj", "v_proj"])
    there_and_back(session, [dora, plain], base, tmp_path, strengths=[0.9, 0.4])


@pytest.mark.filterwarnings("ignore")
def test_what_was_added_goes(session: Session, tmp_path: Path) -> None:
    """A head that the base has none for, written into its only file."""
    base, adapter = trained(tmp_path, Net, torch.bfloat16, target_modules=["q_proj"], modules_to_save=["classifier"])
    tensors = load_file(base / "model.safetensors")
    bare = {name: tensor for name, tensor in tensors.items() if "classifier" not in name}
    save_file(bare, base / "model.safetensors", metadata={"format": "pt"})
    there_and_back(session, [adapter], base, tmp_path)


def test_parted_layers_are_one_again(session: Session, tmp_path: Path) -> None:
    """The output layer that shared its weight with the embedding goes, and the configuration ties them again."""
    base = tmp_path / "tied"
    base.mkdir()
    embedding = torch.randn(16, 8, generator=torch.Generator().manual_seed(1))
    save_file({"model.embed_tokens.weight": embedding}, base / "model.safetensors", metadata={"format": "pt"})
    (base / "config.json").write_text(json.dumps({"tie_word_embeddings": True}))
    adapter = write_adapter(tmp_path / "head", factors({"lm_head": (16, 8)}), target_modules=["lm_head"])
    there_and_back(session, [adapter], base, tmp_path)


# What does not fit.


def edited(path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Write one file of weights anew."""
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt", "by": "test"})


def add_to(tensors: dict[str, torch.Tensor], part: str) -> None:
    for name in tensors:
        if part in name:
            tensors[name].view(-1)[:1].add_(8)


def touch_weight(place: Path) -> None:
    for path in (place / "merged").glob("*.safetensors"):
        edited(path, lambda tensors: add_to(tensors, "q_proj"))


def touch_other(place: Path) -> None:
    for path in (place / "merged").glob("*.safetensors"):
        edited(
            path, lambda tensors: [tensor.view(-1)[:1].add_(8) for name, tensor in tensors.items() if "norm" in name]
        )


def lose_shard(place: Path) -> None:
    first, second = sorted((place / "merged").glob("*.safetensors"))
    tensors = {**load_file(first), **load_file(second)}
    first.unlink()
    second.unlink()
    (place / "merged" / "model.safetensors.index.json").unlink()
    save_file(tensors, place / "merged" / "model.safetensors")


def narrow(place: Path) -> None:
    for path in (place / "merged").glob("*.safetensors"):
        edited(path, lambda tensors: tensors.update({name: one.half() for name, one in tensors.items()}))


def other_adapter(place: Path) -> None:
    write_adapter(place / "adapter", seed=9)


def cut_short(place: Path) -> None:
    (place / "undo").write_bytes((place / "undo").read_bytes()[:-1])


def no_undo(place: Path) -> None:
    write_adapter(place / "other")
    (place / "undo").write_bytes((place / "other" / "adapter_model.safetensors").read_bytes())


def other_version(place: Path) -> None:
    (place / "undo").write_bytes((place / "undo").read_bytes().replace(b"lora_lab_undo/1", b"lora_lab_undo/9"))


def other_tensor(place: Path) -> None:
    content = (place / "undo").read_bytes()
    (place / "undo").write_bytes(
        content.replace(b"residual:model.layers.2.self_attn.v", b"residual:model.layers.3.self_attn.v")
    )


BROKEN: dict[str, tuple[Callable[[Path], None], type[LoraLabError], str]] = {
    "weight edited": (touch_weight, CompatibilityError, "does not give the base's bits back: its sha256 is"),
    "other tensor edited": (touch_other, CompatibilityError, "was changed after the merge"),
    "other shards": (lose_shard, CompatibilityError, "'model-00001-of-00002.safetensors' is not there"),
    "narrowed": (narrow, CompatibilityError, "is not the merge that"),
    "adapter": (other_adapter, CompatibilityError, "its sha256 is another one"),
    "undo cut": (cut_short, FileFormatError, "undo'"),
    "no undo file": (no_undo, FileFormatError, "its format is not given"),
    "version": (other_version, FileFormatError, "its format is 'lora_lab_undo/9'"),
    "residuals": (other_tensor, FileFormatError, "other residuals than it lists"),
}


@pytest.mark.parametrize(("change", "kind", "fragment"), BROKEN.values(), ids=BROKEN.keys())
def test_what_does_not_fit_is_refused(
    change: Callable[[Path], None],
    kind: type[LoraLabError],
    fragment: str,
    session: Session,
    adapter: Path,
    base: Path,
    tmp_path: Path,
) -> None:
    """One sentence, and no output."""
    session.merge([str(adapter)], base=str(base), output=tmp_path / "merged", undo=tmp_path / "undo")
    change(tmp_path)
    with pytest.raises(kind) as caught:
        session.unmerge(str(tmp_path / "merged"), output=tmp_path / "back", undo=tmp_path / "undo")
    assert fragment in caught.value.message
    assert not (tmp_path / "back").exists()


def test_other_adapters_are_refused(session: Session, adapter: Path, base: Path, tmp_path: Path) -> None:
    """Given by name: as many as were merged, and those."""
    session.merge([str(adapter)], base=str(base), output=tmp_path / "merged", undo=tmp_path / "undo")
    other = write_adapter(tmp_path / "other", seed=9)
    for names, fragment in (([adapter, other], "Got 2 adapters, expected the 1"), ([other], "its sha256 is another")):
        with pytest.raises(CompatibilityError, match=fragment):
            session.unmerge(
                str(tmp_path / "merged"),
                output=tmp_path / "back",
                undo=tmp_path / "undo",
                adapters=[str(name) for name in names],
            )
    moved = adapter.rename(tmp_path / "moved")
    with pytest.raises(LoraLabError, match="adapter'"):
        session.unmerge(str(tmp_path / "merged"), output=tmp_path / "back", undo=tmp_path / "undo")
    session.unmerge(str(tmp_path / "merged"), output=tmp_path / "back", undo=tmp_path / "undo", adapters=[str(moved)])
    assert model_files(tmp_path / "back") == model_files(base)


def test_no_changed_byte_gives_another_base(session: Session, adapter: Path, base: Path, tmp_path: Path) -> None:
    """Anywhere in the undo file: refused, or without effect on the bytes of the weights."""
    session.merge([str(adapter)], base=str(base), output=tmp_path / "merged", undo=tmp_path / "undo")
    content = (tmp_path / "undo").read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    wanted = {name: content for name, content in model_files(base).items() if name.endswith(".safetensors")}
    refused = 0
    for at in [*range(0, begin, 97), *range(begin, len(content), 13)]:
        (tmp_path / "undo").write_bytes(content[:at] + bytes([content[at] ^ 0x15]) + content[at + 1 :])
        try:
            session.unmerge(str(tmp_path / "merged"), output=tmp_path / "back", undo=tmp_path / "undo", overwrite=True)
        except LoraLabError:
            refused += 1
            continue
        assert {name: one for name, one in model_files(tmp_path / "back").items() if name in wanted} == wanted, at
    assert refused > 20


def test_a_document_cannot_lead_out(session: Session, adapter: Path, base: Path, tmp_path: Path) -> None:
    """Names in an undo file are names, never paths."""
    session.merge([str(adapter)], base=str(base), output=tmp_path / "merged", undo=tmp_path / "undo", dtype="float32")
    content = (tmp_path / "undo").read_bytes()
    assert b'"document:config.json"' in content
    (tmp_path / "undo").write_bytes(content.replace(b'"document:config.json"', b'"document:../fig.json"'))
    with pytest.raises(FileFormatError, match=r"a document called '../fig.json'"):
        open_undo(tmp_path / "undo")


# Where it goes.


def test_where_it_cannot_be(session: Session, adapter: Path, base: Path, tmp_path: Path) -> None:
    """On a file that is there, in the output, in no folder, as a folder: refused before anything is written."""
    place = tmp_path / "place"
    place.mkdir()
    (place / "there").write_text("mine")
    (place / "folder").mkdir()
    before = contents(place)
    refusals = {
        "there": "exists already",
        "out/undo": "lies in the output",
        "nowhere/undo": "is not there",
        "folder": "exists already",
    }
    for name, fragment in refusals.items():
        with pytest.raises(OperationError, match=fragment):
            session.merge([str(adapter)], base=str(base), output=place / "out", undo=place / name)
        assert contents(place) == before
        assert not (place / "out").exists()
    session.merge([str(adapter)], base=str(base), output=place / "out", undo=place / "there", overwrite=True)
    open_undo(place / "there")


@pytest.mark.parametrize("fault", ["full", "killed", "power"])
def test_a_fault_at_any_call(fault: str, session: Session, adapter: Path, base: Path, tmp_path: Path) -> None:
    """An undo file that has its name gives the base back; a merged model that has its name has its undo file."""
    opened = [session.adapter(str(adapter))], session.base(str(base))

    def run(place: Path, disk: FaultyDisk, *, resume: bool = False) -> None:
        merge(*opened, place / "merged", reader=FactorReader(), undo=place / "undo", disk=disk, resume=resume)

    undisturbed = tmp_path / "undisturbed"
    undisturbed.mkdir()
    counted = FaultyDisk()
    run(undisturbed, counted)
    wanted = model_files(undisturbed / "merged")
    undo = (undisturbed / "undo").read_bytes()
    for at in range(counted.calls):
        place = tmp_path / f"{fault}-{at}"
        place.mkdir()
        disk = FaultyDisk(at, FULL if fault == "full" else 0, is_losing=fault == "power")
        with suppress(OperationError, Killed):
            run(place, disk)
        is_undoable = (place / "undo").exists()
        if is_undoable:
            assert (place / "undo").read_bytes() == undo, at
        if (place / "merged").exists():
            assert is_undoable, at
            assert model_files(place / "merged") == wanted, at
        with suppress(OperationError):  # "was completed by the run that was interrupted"
            run(place, FaultyDisk(), resume=True)
        assert (place / "undo").read_bytes() == undo, at
        assert model_files(place / "merged") == wanted, at
        assert sorted(path.name for path in place.iterdir()) == ["merged", "undo"], at
    back = session.unmerge(str(undisturbed / "merged"), output=tmp_path / "back", undo=undisturbed / "undo")
    assert back.to_json()["proof"]["exact"] is True


def test_the_same_merge_writes_the_same_file(session: Session, adapter: Path, base: Path, tmp_path: Path) -> None:
    """No time, no place, no chance is in it but the recipe."""
    made = []
    for name in ("a", "b"):
        session.merge([str(adapter)], base=str(base), output=tmp_path / name, undo=tmp_path / f"{name}.undo")
        made.append((tmp_path / f"{name}.undo").read_bytes())
    assert made[0] == made[1]
    (length,) = struct.unpack("<Q", made[0][:8])
    assert length % 8 == 0
