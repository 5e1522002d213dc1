"""Every file of the corpus through the readers themselves."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest
import safetensors
from corpus.pickle_cases import CANARY
from corpus.storage_cases import CASES, Case
from safetensors import safe_open

from lora_lab.errors import LoraLabError, OperationError
from lora_lab.safetext import safe_text
from lora_lab.storage.header import read_header
from lora_lab.storage.pickles import converted_pickle
from lora_lab.storage.shards import read_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

ACCEPTED = [case for case in CASES if case.expect == "accepted"]
REFUSED = [case for case in CASES if case.expect == "refused"]
HANGS_SAFETENSORS = {"pipe"}


def by_id(cases: list[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=lambda case: f"{case.number}-{case.id}")


def read(case: Case, path: Path, cache: Path) -> tuple[str, ...]:
    """Codes of the findings."""
    if case.reader == "pickle":
        converted_pickle(path, cache_dir=cache)
        return ()
    found = read_header(path) if case.reader == "file" else read_checkpoint(path)
    return tuple(finding.code for finding in found.findings)


@by_id(REFUSED)
def test_refused_in_one_sentence(case: Case, tmp_path: Path) -> None:
    """One sentence with the file's name and what is wrong, within a second, and nothing left behind."""
    if case.needs_user and os.geteuid() == 0:
        pytest.skip("root may read everything")
    folder = tmp_path / "in"
    folder.mkdir()
    path = case.build(folder)
    before = sorted(folder.rglob("*"))
    started = time.process_time()
    with pytest.raises(LoraLabError) as caught:
        read(case, path, tmp_path / "cache")
    assert time.process_time() - started < 1
    message = caught.value.message
    assert case.fragment in message
    assert path.name[-20:] in message
    assert message.endswith(".")
    assert ". " not in message
    assert message == safe_text(message)
    assert isinstance(caught.value, OperationError) == (case.exit_code == 3)
    assert sorted(folder.rglob("*")) == before
    assert not (folder / CANARY).exists()
    assert not list(tmp_path.glob("cache/*"))


@by_id(ACCEPTED)
def test_accepted(case: Case, tmp_path: Path) -> None:
    """Odd but right: read, and told when it is odd."""
    codes = read(case, case.build(tmp_path), tmp_path / "cache")
    assert codes == ((case.finding,) if case.finding else ())


@by_id([case for case in CASES if case.reader == "file" and case.id not in HANGS_SAFETENSORS])
def test_never_more_than_safetensors(case: Case, tmp_path: Path) -> None:
    """What the format's own library refuses is never accepted."""
    path = case.build(tmp_path)
    try:
        with safe_open(path, "np"):
            return
    except (OSError, safetensors.SafetensorError):
        if not (case.needs_user and os.geteuid() == 0):
            assert case.expect == "refused"


def test_every_row_is_there() -> None:
    """Rows 1 to 12 and 15 to 42 of reading, 64 to 70 of shards and pickles; 13 and 14 need a file that changes."""
    assert {case.number for case in CASES} == {*range(1, 13), *range(15, 43), *range(64, 71)}
    assert len({case.id for case in CASES}) == len(CASES)
