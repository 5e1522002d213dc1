"""An output lies in no folder that is read, and holds none: later copies would carry it along, or it would be lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from builders import contents, write_adapter, write_base
from safetensors.torch import load_file, save_file

from lora_lab import Session
from lora_lab.errors import LoraLabError, OperationError


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Adapters, a base, its fine-tune, and a merged model with its undo file."""
    write_adapter(tmp_path / "one", seed=1)
    write_adapter(tmp_path / "two", seed=2)
    write_adapter(tmp_path / "moved", seed=3, init_lora_weights="pissa")
    write_base(tmp_path / "base")
    write_base(tmp_path / "tuned")
    weights = {name: tensor + 1.0 for name, tensor in load_file(tmp_path / "base/model.safetensors").items()}
    save_file(weights, tmp_path / "tuned" / "model.safetensors")
    Session(cache=False).merge(
        [str(tmp_path / "one")], base=str(tmp_path / "base"), output=tmp_path / "merged", undo=tmp_path / "undo"
    )
    return tmp_path


def calls(place: Path) -> dict[str, Any]:
    """Every command that writes a folder, by name, as functions of the output."""
    session = Session(cache=False)
    one, two, moved, base, tuned, merged, undo = (
        str(place / name) for name in ("one", "two", "moved", "base", "tuned", "merged", "undo")
    )
    return {
        "merge": lambda **to: session.merge([one], base=base, **to),
        "combine": lambda **to: session.combine([one, two], **to),
        "sweep": lambda **to: session.sweep([one, two], strengths=[[1.0, 2.0]], **to),
        "resize": lambda **to: session.resize(moved, base=base, rank=2, **to),
        "extract": lambda **to: session.extract(base, tuned, rank=2, **to),
        "unmerge --base": lambda **to: session.unmerge(merged, base=base, adapters=[one], **to),
        "unmerge --undo": lambda **to: session.unmerge(merged, undo=undo, **to),
        "unmerge --adapter": lambda **to: session.unmerge(merged, adapters=[one], **to),
        "swap --base": lambda **to: session.swap(merged, from_adapters=[one], to_adapters=[two], base=base, **to),
        "swap --undo": lambda **to: session.swap(merged, from_adapters=[one], to_adapters=[two], undo=undo, **to),
        "swap": lambda **to: session.swap(merged, from_adapters=[one], to_adapters=[two], **to),
    }


READ = {
    "merge": ["one", "base"],
    "combine": ["one", "two"],
    "sweep": ["one", "two"],
    "resize": ["moved", "base"],
    "extract": ["base", "tuned"],
    "unmerge --base": ["merged", "base", "one"],
    "unmerge --undo": ["merged", "one"],
    "unmerge --adapter": ["merged", "one"],
    "swap --base": ["merged", "base", "one", "two"],
    "swap --undo": ["merged", "one", "two"],
    "swap": ["merged", "one", "two"],
}
CASES = [(command, name) for command, names in READ.items() for name in names]


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize(("command", "name"), CASES)
def test_no_output_within_what_is_read(command: str, name: str, dry_run: bool, place: Path) -> None:
    before = contents(place)
    with pytest.raises(OperationError) as raised:
        calls(place)[command](output=place / name / "sub", dry_run=dry_run)
    inner = place / name / ("sub-1-2" if command == "sweep" else "sub")
    assert (
        raised.value.message == f"'{inner}' lies within '{place / name}', which is read: it would become a part of it."
    )
    assert contents(place) == before


@pytest.mark.parametrize(("command", "name"), CASES)
def test_no_output_that_holds_what_is_read(command: str, name: str, place: Path) -> None:
    """Where the name is a folder above an input, replacing it would lose the input."""
    above = place.parent / f"{place.name}-outer"
    above.mkdir()
    inner = above / ("out-1-2" if command == "sweep" else "out")
    inner.mkdir()
    (place / name).rename(inner / name)
    (place / name).symlink_to(inner / name)
    before = contents(inner)
    with pytest.raises(OperationError, match="which is read: it would be replaced"):
        calls(place)[command](output=above / "out", overwrite=True)
    assert contents(inner) == before


def test_a_changed_model_may_be_replaced(place: Path) -> None:
    """What is unmerged in its own place is no mishap."""
    calls(place)["unmerge --base"](output=place / "merged", overwrite=True)
    assert (place / "merged" / "model.safetensors").read_bytes() == (place / "base" / "model.safetensors").read_bytes()


def test_a_file_leaves_the_folder_around_it_free(place: Path) -> None:
    """Of a file that is named by itself, what lies beside it is no input."""
    adapter = place / "one" / "adapter_model.safetensors"
    session = Session(cache=False)
    session.resize(str(adapter), rank=2, output=place / "one" / "small")
    session.merge([str(adapter)], base=str(place / "base" / "model.safetensors"), output=place / "base" / "sub")
    assert session.adapter(str(place / "one" / "small")).ranks == (2, 2)


def test_no_undo_file_within_what_is_read(place: Path) -> None:
    """The next merge of that base would copy it along."""
    before = contents(place)
    with pytest.raises(OperationError, match=r"'.*/base/undo' lies within '.*/base', which is read"):
        calls(place)["merge"](output=place / "out", undo=place / "base" / "undo")
    assert contents(place) == before


def test_links_hide_nothing(place: Path) -> None:
    (place / "link").symlink_to(place / "base")
    with pytest.raises(LoraLabError, match="lies within"):
        calls(place)["merge"](output=place / "link" / "sub")
