"""Swapping adapters in files: the bytes of a merge where the base's are known, one pass and a warning where not."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import MODULES, contents, delta_of, factors, write_adapter, write_sharded
from safetensors.torch import load_file, save_file
from storage.faulty import FULL, FaultyDisk, Killed

from lora_lab import LoraLabError, Session
from lora_lab.errors import CompatibilityError, OperationError
from lora_lab.formats.factors import FactorReader
from lora_lab.operations.swap import swap
from lora_lab.operations.undo import open_undo

BESIDE = {"lora_lab_receipt.json", "pytorch_model.bin", ".hidden"}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture
def session() -> Session:
    return Session(cache=False, seed=4)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "old", seed=1)


@pytest.fixture
def new(tmp_path: Path) -> Path:
    """On other modules than the old one, and with a head that the base lacks."""
    head = {"base_model.model.score.weight": torch.ones(2, 16)}
    modules = dict(list(MODULES.items())[1:])
    return write_adapter(tmp_path / "new", {**factors(modules, seed=2), **head}, modules_to_save=["score"])


def model_files(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in contents(folder).items() if name not in BESIDE}


def whole(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def prepared(session: Session, old: Path, base: Path, place: Path, **how: Any) -> dict[str, Any]:
    """A merge with its undo file; the keywords of a swap that begins with it."""
    session.merge([str(old)], base=str(base), output=place / "merged", undo=place / "undo", **how)
    return {"from_adapters": [str(old)], "strengths_from": how.get("strengths", ())}


# To the bit.


@pytest.mark.parametrize("how", [{}, {"dtype": "float32"}, {"rounding": "stochastic"}], ids=["", "wider", "chance"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("way", ["base", "undo"])
def test_it_is_a_merge_into_the_base(
    way: str, dtype: torch.dtype, how: dict[str, str], session: Session, old: Path, new: Path, tmp_path: Path
) -> None:
    """Every file has the bytes that merging the new adapter gives, and a new undo file leads back to the base."""
    base = write_sharded(tmp_path / "base", dtype)
    begun = prepared(session, old, base, tmp_path, strengths=[0.7])
    session.merge([str(new)], base=str(base), output=tmp_path / "wanted", strengths=[0.4], **how)
    report = session.swap(
        str(tmp_path / "merged"),
        to_adapters=[str(new)],
        output=tmp_path / "out",
        strengths_to=[0.4],
        write_undo=tmp_path / "second",
        **{way: str(base) if way == "base" else tmp_path / "undo"},
        **begun,
        **how,
    )
    assert model_files(tmp_path / "out") == model_files(tmp_path / "wanted")
    assert report.to_json()["proof"]["exact"] is True
    assert [row["tensor"] for row in report.table("added").rows] == ["score.weight"]
    session.unmerge(str(tmp_path / "out"), output=tmp_path / "back", undo=tmp_path / "second")
    assert model_files(tmp_path / "back") == model_files(base)
    session.unmerge(str(tmp_path / "out"), output=tmp_path / "again", base=str(base))
    assert model_files(tmp_path / "again") == model_files(base)


def test_swaps_in_a_row(session: Session, old: Path, new: Path, tmp_path: Path) -> None:
    """Each with the undo file of the one before: after an even number of them the first merge is there again."""
    base = write_sharded(tmp_path / "base")
    prepared(session, old, base, tmp_path)
    now, undo = tmp_path / "merged", tmp_path / "undo"
    for number in range(6):
        pair = [str(old), str(new)] if number % 2 == 0 else [str(new), str(old)]
        place, kept = tmp_path / f"{number}", tmp_path / f"undo-{number}"
        session.swap(str(now), from_adapters=pair[:1], to_adapters=pair[1:], output=place, undo=undo, write_undo=kept)
        now, undo = place, kept
    assert model_files(now) == model_files(tmp_path / "merged")
    assert undo.read_bytes() == (tmp_path / "undo").read_bytes()


def dora(folder: Path, seed: int) -> Path:
    tensors = factors(seed=seed)
    for name, (rows, _) in MODULES.items():
        tensors[f"base_model.model.{name}.lora_magnitude_vector"] = torch.full((rows,), 0.3)
    return write_adapter(folder, tensors, use_dora=True)


@pytest.mark.parametrize("way", ["base", "undo"])
def test_dora_is_swapped_over_the_base(way: str, session: Session, tmp_path: Path) -> None:
    """Out and in: its norms are of weights that are known."""
    base = write_sharded(tmp_path / "base")
    begun = prepared(session, dora(tmp_path / "one", 1), base, tmp_path)
    second = dora(tmp_path / "two", 2)
    session.merge([str(second)], base=str(base), output=tmp_path / "wanted")
    ways = {way: str(base) if way == "base" else tmp_path / "undo"}
    session.swap(str(tmp_path / "merged"), to_adapters=[str(second)], output=tmp_path / "out", **ways, **begun)
    assert model_files(tmp_path / "out") == model_files(tmp_path / "wanted")


# In one pass.


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_pass_is_near_and_says_so(
    dtype: torch.dtype, session: Session, old: Path, new: Path, tmp_path: Path
) -> None:
    """(W′ − ΔW_A) + ΔW_B, each rounded, element by element, and a warning with how far the base is."""
    base = write_sharded(tmp_path / "base", dtype)
    begun = prepared(session, old, base, tmp_path, strengths=[0.7])
    report = session.swap(
        str(tmp_path / "merged"), to_adapters=[str(new)], output=tmp_path / "out", strengths_to=[0.4], **begun
    )
    (finding,) = [one for one in report.findings if one.code == "inexact_swap"]
    assert finding.message.startswith("Subtracting does not give the base's bits back to swap over: ")
    assert report.to_json()["proof"]["exact"] is False
    before, after = whole(tmp_path / "merged"), whole(tmp_path / "out")
    eps, coming = torch.finfo(dtype).eps, factors(dict(list(MODULES.items())[1:]), seed=2)
    for name in MODULES:
        tensor = before[f"{name}.weight"].double().numpy()
        going_delta = 0.7 * delta_of(factors(seed=1), name, 2.0).numpy()
        has_new = f"base_model.model.{name}.lora_A.weight" in coming
        coming_delta = 0.4 * delta_of(coming, name, 2.0).numpy() if has_new else np.zeros_like(tensor)
        back = tensor - going_delta
        exact = back + coming_delta
        size = np.abs(tensor) + np.abs(going_delta) + np.abs(coming_delta)
        bound = eps / 2 * (np.abs(exact) + np.abs(back)) * (1 + eps) + 16 * torch.finfo(torch.float32).eps * size
        assert (np.abs(after[f"{name}.weight"].double().numpy() - exact) <= bound).all()
    assert after["score.weight"].double().equal(torch.ones(2, 16).double())
    assert {row["tensor"] for row in report.table("doubts").rows} == {f"{name}.weight" for name in MODULES}


def test_dora_comes_in_one_pass(session: Session, old: Path, tmp_path: Path) -> None:
    """Its norms are of what subtraction gives back, which is all but the base."""
    base = write_sharded(tmp_path / "base", torch.float32)
    begun = prepared(session, old, base, tmp_path)
    second = str(dora(tmp_path / "dora", 3))
    session.swap(str(tmp_path / "merged"), to_adapters=[second], output=tmp_path / "out", **begun)
    session.merge([second], base=str(base), output=tmp_path / "wanted")
    wanted = whole(tmp_path / "wanted")
    for name, tensor in whole(tmp_path / "out").items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-4, atol=1e-4)


def test_one_pass_reads_and_writes_once(session: Session, old: Path, tmp_path: Path) -> None:
    """The bytes of the model are read once, and nothing but the model and its receipt is written."""
    base = write_sharded(tmp_path / "base")
    begun = prepared(session, old, base, tmp_path)
    report = session.swap(
        str(tmp_path / "merged"), to_adapters=[str(write_adapter(tmp_path / "b"))], output=tmp_path / "out", **begun
    )
    figures = report.to_json()
    weights = sum(tensor.nbytes for tensor in whole(tmp_path / "merged").values())
    assert figures["bytes_read"] == weights
    assert {row["path"] for row in figures["outputs"]} == model_files(tmp_path / "merged").keys()


def test_the_base_still_fits_after_one_pass(session: Session, old: Path, new: Path, tmp_path: Path) -> None:
    """The receipt of such a swap does not call hashes of a merged model those of the base."""
    base = write_sharded(tmp_path / "base")
    begun = prepared(session, old, base, tmp_path)
    session.swap(str(tmp_path / "merged"), to_adapters=[str(new)], output=tmp_path / "out", **begun)
    session.unmerge(str(tmp_path / "out"), output=tmp_path / "back", base=str(base))
    assert model_files(tmp_path / "back") == model_files(base)


def whole_norm(folder: Path, value: float) -> Path:
    saved = {"base_model.model.model.norm.weight": torch.full((16,), value)}
    return write_adapter(folder, {**factors(), **saved}, modules_to_save=["norm"])


def test_a_whole_module_takes_the_place_of_another(session: Session, old: Path, tmp_path: Path) -> None:
    """What the new adapter brings whole needs nothing of what stood there; without it nothing can."""
    base = write_sharded(tmp_path / "base")
    first, second = whole_norm(tmp_path / "first", 3.0), whole_norm(tmp_path / "second", 5.0)
    begun = prepared(session, first, base, tmp_path)
    session.swap(str(tmp_path / "merged"), to_adapters=[str(second)], output=tmp_path / "out", **begun)
    assert whole(tmp_path / "out")["model.norm.weight"].equal(torch.full((16,), 5.0, dtype=torch.bfloat16))
    with pytest.raises(CompatibilityError, match=r"brought 'model\.norm\.weight' whole"):
        session.swap(str(tmp_path / "merged"), to_adapters=[str(old)], output=tmp_path / "other", **begun)


# What is refused, and what survives.


def other_base(place: Path) -> dict[str, Any]:
    base = place / "base"
    for path in base.glob("*.safetensors"):
        save_file({name: one + 1 for name, one in load_file(path).items()}, path)
    return {"base": str(base)}


REFUSED: dict[str, tuple[Callable[[Path], dict[str, Any]], str]] = {
    "both": (lambda place: {"base": str(place / "base"), "undo": place / "undo"}, "Got a base and an undo file"),
    "no bits": (lambda place: {"write_undo": place / "second"}, "can only be written where the base's bits are known"),
    "other base": (other_base, "the receipt has another sha256"),
    "other adapter": (lambda place: {"undo": place / "undo", "from_adapters": [str(place / "new")]}, "is another one"),
    "its own undo": (
        lambda place: {"undo": place / "undo", "write_undo": place / "undo", "overwrite": True},
        "is what the base is read from",
    ),
    "dora out": (lambda place: {"from_adapters": [str(dora(place / "dora", 3))]}, "is DoRA, whose norms"),
    "there": (lambda _: {"output": "base"}, "exists already"),
}


@pytest.mark.parametrize(("wish", "fragment"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_refused(
    wish: Callable[[Path], dict[str, Any]], fragment: str, session: Session, old: Path, new: Path, tmp_path: Path
) -> None:
    """One sentence, and nothing has changed."""
    base = write_sharded(tmp_path / "base")
    begun = prepared(session, old, base, tmp_path)
    wishes = {**begun, "to_adapters": [str(new)], "output": "out", **wish(tmp_path)}
    wishes["output"] = tmp_path / wishes["output"]
    before = contents(tmp_path)
    with pytest.raises(LoraLabError) as caught:
        session.swap(str(tmp_path / "merged"), **wishes)
    assert fragment in caught.value.message
    assert contents(tmp_path) == before


@pytest.mark.parametrize("fault", ["full", "killed", "power"])
def test_a_fault_at_any_call(fault: str, session: Session, old: Path, new: Path, tmp_path: Path) -> None:
    """In its own place: at every moment the base can be had back, from the old pair or from the new one."""
    base = write_sharded(tmp_path / "base")
    prepared(session, old, base, tmp_path)
    adapters = {name: session.adapter(str(tmp_path / name)) for name in ("old", "new")}
    before = model_files(tmp_path / "merged")

    def run(place: Path, disk: FaultyDisk, *, resume: bool = False) -> None:
        swap(
            session.base(str(tmp_path / "merged")),
            [adapters["old"]],
            [adapters["new"]],
            place / "model",
            undo=open_undo(tmp_path / "undo"),
            write_undo=place / "second",
            reader=FactorReader(),
            disk=disk,
            overwrite=True,
            resume=resume,
        )

    counted = FaultyDisk()
    undisturbed = tmp_path / "undisturbed"
    undisturbed.mkdir()
    run(undisturbed, counted)
    wanted, undo = model_files(undisturbed / "model"), (undisturbed / "second").read_bytes()
    for at in range(0, counted.calls, 3):
        place = tmp_path / f"{fault}-{at}"
        (place / "model").mkdir(parents=True)
        for name, content in before.items():
            (place / "model" / name).parent.mkdir(exist_ok=True)
            (place / "model" / name).write_bytes(content)
        disk = FaultyDisk(at, FULL if fault == "full" else 0, is_losing=fault == "power")
        with suppress(OperationError, Killed):
            run(place, disk)
        seen = model_files(place / "model")
        assert seen in (before, wanted), at
        if (place / "second").exists():
            assert (place / "second").read_bytes() == undo, at
        assert seen == before or (place / "second").exists(), at
        with suppress(OperationError):  # "was completed by the run that was interrupted"
            run(place, FaultyDisk(), resume=True)
        assert model_files(place / "model") == wanted, at
        assert (place / "second").read_bytes() == undo, at
        assert sorted(path.name for path in place.iterdir()) == ["model", "second"], at
