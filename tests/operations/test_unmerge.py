"""Unmerging with the base at hand, and by subtraction: what comes back, how it is known, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import MODULES, contents, factors, write_adapter, write_sharded
from safetensors.torch import load_file, save_file
from storage.faulty import FULL, FaultyDisk, Killed

from lora_lab import LoraLabError, Session
from lora_lab.errors import CancelledError, CompatibilityError, FileFormatError, OperationError
from lora_lab.formats.factors import FactorReader
from lora_lab.operations.undo import open_undo
from lora_lab.operations.unmerge import unmerge

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


@pytest.fixture
def merged(session: Session, adapter: Path, base: Path, tmp_path: Path) -> Path:
    session.merge([str(adapter)], base=str(base), output=tmp_path / "merged", undo=tmp_path / "undo")
    return tmp_path / "merged"


def model_files(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in contents(folder).items() if name not in BESIDE}


def whole(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


# With the base.


@pytest.mark.parametrize("dtype", [None, "float32", "float16"])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
def test_the_base_gives_its_bytes(
    stored: torch.dtype, dtype: str | None, session: Session, adapter: Path, tmp_path: Path
) -> None:
    """Whatever type the merge was written in: the receipt's hashes say that it is the base."""
    base = write_sharded(tmp_path / "base", stored)
    session.merge([str(adapter)], base=str(base), output=tmp_path / "merged", dtype=dtype)
    report = session.unmerge(str(tmp_path / "merged"), output=tmp_path / "back", base=str(base))
    assert model_files(tmp_path / "back") == model_files(base)
    proof = report.to_json()["proof"]
    assert (proof["method"], proof["exact"]) == ("base", True)
    assert proof["proven_by"] == "bytes of the base; that it is the one: sha256 in the receipt"
    assert json.loads((tmp_path / "back" / "lora_lab_receipt.json").read_text())["operation"] == "unmerge"


def test_a_merge_of_others_has_no_receipt(
    session: Session, adapter: Path, base: Path, merged: Path, tmp_path: Path
) -> None:
    """The adapters say what was touched; with nothing that says so, what differs is named."""
    (merged / "lora_lab_receipt.json").unlink()
    report = session.unmerge(str(merged), output=tmp_path / "one", base=str(base), adapters=[str(adapter)])
    assert not [one for one in report.findings if one.code in ("no_receipt", "unproven_base")]
    assert report.to_json()["proof"]["proven_by"].endswith("W + Δ, which is the merged model")
    report = session.unmerge(str(merged), output=tmp_path / "two", base=str(base))
    (finding,) = [one for one in report.findings if one.code == "no_receipt"]
    assert finding.message.startswith("3 of 6 tensors of 'merged' differ from 'base'")
    assert model_files(tmp_path / "one") == model_files(tmp_path / "two") == model_files(base)


def test_without_a_receipt_the_arithmetic_proves_the_base(
    session: Session, adapter: Path, base: Path, merged: Path, tmp_path: Path
) -> None:
    """A base that differs only where the adapter changed it is told apart by W + Δ, of unmerge and of swap."""
    (merged / "lora_lab_receipt.json").unlink()
    edited(base, "layers.2.self_attn.q", lambda tensor: tensor + 1)
    for report in (
        session.unmerge(str(merged), output=tmp_path / "one", base=str(base), adapters=[str(adapter)]),
        session.swap(
            str(merged),
            output=tmp_path / "two",
            base=str(base),
            from_adapters=[str(adapter)],
            to_adapters=[str(adapter)],
        ),
    ):
        (finding,) = [one for one in report.findings if one.code == "unproven_base"]
        assert "in 1 tensors W + Δ of the adapters is not what is there" in finding.message
        assert "layers.2.self_attn.q_proj.weight" in finding.message
        assert report.to_json()["proof"]["proven_by"].endswith("equal tensors, where none was changed")


def edited(folder: Path, part: str, change: Callable[[torch.Tensor], torch.Tensor | None]) -> None:
    """Change, or drop, every tensor whose name holds `part`."""
    for path in folder.glob("*.safetensors"):
        found = {name: change(tensor) if part in name else tensor for name, tensor in load_file(path).items()}
        save_file({name: one for name, one in found.items() if one is not None}, path)
        if any(one is None for one in found.values()):
            (folder / "model.safetensors.index.json").unlink()


OTHER_BASES: dict[str, tuple[str, Callable[[torch.Tensor], torch.Tensor | None], str]] = {
    "touched": ("layers.2.self_attn.q", lambda tensor: tensor + 1, "the receipt has another sha256 for it"),
    "untouched": ("norm", lambda tensor: tensor + 1, "1 tensors of 'merged' differ from 'base' although"),
    "zeros": ("steps", lambda tensor: tensor * 2, "1 tensors of 'merged' differ from 'base' although"),
    "shape": ("norm", lambda tensor: torch.cat([tensor, tensor]), "it has no 'model.norm.weight' of the shape [32]"),
}


@pytest.mark.parametrize(("part", "change", "fragment"), OTHER_BASES.values(), ids=OTHER_BASES.keys())
def test_another_base_is_refused(
    part: str,
    change: Callable[[torch.Tensor], torch.Tensor | None],
    fragment: str,
    session: Session,
    base: Path,
    merged: Path,
    tmp_path: Path,
) -> None:
    """One tensor of it is enough."""
    edited(base, part, change)
    with pytest.raises(CompatibilityError) as caught:
        session.unmerge(str(merged), output=tmp_path / "back", base=str(base))
    assert fragment in caught.value.message
    assert not (tmp_path / "back").exists()


# By subtraction.


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
def test_subtracting_tells_how_far_it_is_off(stored: torch.dtype, session: Session, tmp_path: Path) -> None:
    """A warning with figures, and the figures are true."""
    base = tmp_path / "base"
    base.mkdir()
    generator = torch.Generator().manual_seed(3)
    names = {"model.layers.0.q_proj": (200, 300), "model.layers.1.q_proj": (100, 300)}
    weights = {f"{name}.weight": (0.02 * torch.randn(shape, generator=generator)) for name, shape in names.items()}
    save_file({name: one.to(stored) for name, one in weights.items()}, base / "model.safetensors")
    adapter = write_adapter(tmp_path / "adapter", {name: 0.03 * one for name, one in factors(names).items()})
    session.merge([str(adapter)], base=str(base), output=tmp_path / "merged", strengths=[0.8])
    report = session.unmerge(
        str(tmp_path / "merged"), output=tmp_path / "back", adapters=[str(adapter)], strengths=[0.8]
    )
    (finding,) = [one for one in report.findings if one.code == "inexact_unmerge"]
    assert "--base and --undo are exact" in finding.message
    before, after = whole(base), whole(tmp_path / "back")
    for row in report.table("doubts").rows:
        error = (after[row["tensor"]].double() - before[row["tensor"]].double()).numpy()
        assert row["expected_changed_fraction"] == pytest.approx((error != 0).mean(), rel=0.15)
        size = np.linalg.norm(before[row["tensor"]].double().numpy())
        assert 0 < np.linalg.norm(error) <= row["relative_error_bound"] * size
    proof = report.to_json()["proof"]
    assert (proof["exact"], proof["method"]) == (False, "subtraction")
    assert len(report.table("doubts").rows) == 2


def test_what_was_added_goes(session: Session, base: Path, tmp_path: Path) -> None:
    """A head that the receipt calls added is left out; the rest is subtracted."""
    head = {"base_model.model.score.weight": torch.ones(2, 16)}
    adapter = write_adapter(tmp_path / "adapter", {**factors(), **head}, modules_to_save=["score"])
    session.merge([str(adapter)], base=str(base), output=tmp_path / "merged")
    assert "score.weight" in whole(tmp_path / "merged")
    session.unmerge(str(tmp_path / "merged"), output=tmp_path / "back", adapters=[str(adapter)])
    assert whole(tmp_path / "back").keys() == whole(base).keys()


def dora(folder: Path) -> Path:
    tensors = factors()
    for name, (rows, _) in MODULES.items():
        tensors[f"base_model.model.{name}.lora_magnitude_vector"] = torch.ones(rows)
    return write_adapter(folder, tensors, use_dora=True)


def whole_norm(folder: Path) -> Path:
    saved = {"base_model.model.model.norm.weight": torch.full((16,), 3.0)}
    return write_adapter(folder, {**factors(), **saved}, modules_to_save=["norm"])


@pytest.mark.parametrize(
    ("write", "fragment"),
    [(dora, "is DoRA, whose norms are of the unmerged"), (whole_norm, "brought 'model.norm.weight' whole")],
)
def test_what_cannot_be_subtracted(
    write: Callable[[Path], Path], fragment: str, session: Session, base: Path, tmp_path: Path
) -> None:
    """It is refused by name; with the base it is undone."""
    adapter = write(tmp_path / "special")
    session.merge([str(adapter)], base=str(base), output=tmp_path / "merged")
    with pytest.raises(CompatibilityError) as caught:
        session.unmerge(str(tmp_path / "merged"), output=tmp_path / "back", adapters=[str(adapter)])
    assert fragment in caught.value.message
    assert "base or the undo file" in (caught.value.hint or "")
    session.unmerge(str(tmp_path / "merged"), output=tmp_path / "back", base=str(base))
    assert model_files(tmp_path / "back") == model_files(base)


def test_parted_layers_are_not_subtracted(session: Session, tmp_path: Path) -> None:
    """Subtracting would leave an output layer that the base has not."""
    base = tmp_path / "tied"
    base.mkdir()
    save_file({"model.embed_tokens.weight": torch.ones(16, 8)}, base / "model.safetensors")
    (base / "config.json").write_text(json.dumps({"tie_word_embeddings": True}))
    adapter = write_adapter(tmp_path / "head", factors({"lm_head": (16, 8)}), target_modules=["lm_head"])
    session.merge([str(adapter)], base=str(base), output=tmp_path / "merged")
    with pytest.raises(CompatibilityError, match=r"'lm_head.weight' was parted from the layer"):
        session.unmerge(str(tmp_path / "merged"), output=tmp_path / "back", adapters=[str(adapter)])
    session.unmerge(str(tmp_path / "merged"), output=tmp_path / "back", base=str(base))
    assert model_files(tmp_path / "back") == model_files(base)


# What is refused, and what survives.


def test_bad_wishes(session: Session, base: Path, merged: Path, tmp_path: Path) -> None:
    """Nothing to go by, too much, an output that exists, a receipt that is none."""
    place = tmp_path / "place"
    place.mkdir()
    with pytest.raises(LoraLabError, match="Nothing says what 'merged' was merged from"):
        session.unmerge(str(merged), output=place / "back")
    with pytest.raises(LoraLabError, match="Got a base and an undo file"):
        session.unmerge(str(merged), output=place / "back", base=str(base), undo=tmp_path / "undo")
    with pytest.raises(OperationError, match="exists already"):
        session.unmerge(str(merged), output=base, base=str(base))
    (merged / "lora_lab_receipt.json").write_text('{"modules": [{"tensor": 3}]}')
    with pytest.raises(FileFormatError, match="is not what a receipt is"):
        session.unmerge(str(merged), output=place / "back", base=str(base))
    assert list(place.iterdir()) == []


def test_in_its_own_place(session: Session, base: Path, merged: Path, tmp_path: Path) -> None:
    """With the word for it the base takes the merged model's name; at any call one of the two is there."""
    session.unmerge(str(merged), output=merged, undo=tmp_path / "undo", overwrite=True)
    assert model_files(merged) == model_files(base)


class Impatient:
    """Wants it no longer after some steps."""

    def __init__(self, after: int) -> None:
        self.left = after

    def advance(self, done: int, total: int, what: str) -> None:
        self.left -= 1

    def rows(self, table: str, rows: Any) -> None: ...

    def is_cancelled(self) -> bool:
        return self.left <= 0


@pytest.mark.parametrize("way", ["base", "undo", "adapters"])
def test_cancelled_means_gone(
    way: str, session: Session, adapter: Path, base: Path, merged: Path, tmp_path: Path
) -> None:
    """Nothing half-made is left."""
    ways: dict[str, Any] = {"base": str(base), "undo": tmp_path / "undo", "adapters": [str(adapter)]}
    place = tmp_path / "place"
    place.mkdir()
    with pytest.raises(CancelledError):
        session.unmerge(str(merged), output=place / "back", observer=Impatient(2), **{way: ways[way]})
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("way", ["base", "undo", "adapters"])
@pytest.mark.parametrize("fault", ["full", "killed", "power"])
def test_a_fault_at_any_call(
    fault: str, way: str, session: Session, adapter: Path, base: Path, merged: Path, tmp_path: Path
) -> None:
    """The merged model or the base at every moment; gone on with, the bytes of an undisturbed run."""
    ways: dict[str, Any] = {"base": session.base(str(base)), "undo": open_undo(tmp_path / "undo")}
    model = session.base(str(merged))
    how: dict[str, Any] = {way: ways[way]} if way in ways else {}
    if way != "base":
        how["adapters"] = [session.adapter(str(adapter))]

    def run(place: Path, disk: FaultyDisk, *, resume: bool = False) -> None:
        unmerge(model, place / "back", reader=FactorReader(), disk=disk, overwrite=True, resume=resume, **how)

    counted = FaultyDisk()
    undisturbed = tmp_path / "undisturbed"
    undisturbed.mkdir()
    run(undisturbed, counted)
    wanted = model_files(undisturbed / "back")
    assert way == "adapters" or wanted == model_files(base)
    for at in range(0, counted.calls, 5):
        place = tmp_path / f"{fault}-{at}"
        (place / "back").mkdir(parents=True)
        (place / "back" / "old").write_text("old")
        disk = FaultyDisk(at, FULL if fault == "full" else 0, is_losing=fault == "power")
        with suppress(OperationError, Killed):
            run(place, disk)
        assert model_files(place / "back") in ({"old": b"old"}, wanted), at
        with suppress(OperationError):  # "was completed by the run that was interrupted"
            run(place, FaultyDisk(), resume=True)
        assert model_files(place / "back") == wanted, at
        assert [path.name for path in place.iterdir()] == ["back"], at


# Held against the receipt.


def test_what_goes_out_is_not_what_went_in(session: Session, merged: Path, adapter: Path, tmp_path: Path) -> None:
    """Subtracting another adapter, or another strength of the same one, is said to; the right one is not."""
    other = write_adapter(tmp_path / "other", factors(MODULES, seed=9))

    def said(subject: Path, strength: float, output: str) -> list[str]:
        report = session.unmerge(
            str(merged), adapters=[str(subject)], strengths=[strength], output=tmp_path / output, dry_run=True
        )
        return [finding.message for finding in report.findings if finding.code == "other_inputs"]

    assert said(adapter, 1.0, "right") == []
    (message,) = said(other, 1.0, "wrong")
    assert "'merged' says that it holds 'adapter' at strength 1, got 'other' at strength 1" in message
    (message,) = said(adapter, 0.5, "half")
    assert "got 'adapter' at strength 0.5" in message


def test_what_a_swap_over_the_base_would_lose(session: Session, base: Path, adapter: Path, tmp_path: Path) -> None:
    """Over the base everything goes; by subtraction the adapter that is not named stays, and nothing is amiss."""
    other = write_adapter(tmp_path / "other", factors(MODULES, seed=9))
    session.merge([str(adapter), str(other)], base=str(base), output=tmp_path / "both")

    def codes(old: list[Path], **how: Any) -> set[str]:
        report = session.swap(
            str(tmp_path / "both"),
            from_adapters=[str(path) for path in old],
            to_adapters=[str(adapter)],
            output=tmp_path / "out",
            dry_run=True,
            **how,
        )
        return {finding.code for finding in report.findings}

    assert "other_inputs" in codes([other], base=str(base))
    assert "other_inputs" not in codes([other, adapter], base=str(base)) | codes([other])
