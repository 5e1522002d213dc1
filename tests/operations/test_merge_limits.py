"""A merge under limits: no room, a limit on a file's size, memory for one block; and what a model makes of it."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import write_adapter, write_sharded
from safetensors.torch import save_file

from lora_lab import Session
from lora_lab.errors import OperationError
from lora_lab.storage.disk import Disk

SAMPLES = Path(__file__).resolve().parents[2] / "sample_adapters"
LARGE_MB = 300


def run(program: str, *arguments: object) -> dict[str, Any]:
    """What a program in a process of its own prints as its last line."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
def test_a_limit_on_the_size_of_files(tmp_path: Path) -> None:
    """The kernel says no in the middle of a file: one sentence, and nothing is left."""
    base, adapter = write_sharded(tmp_path / "base"), write_adapter(tmp_path / "adapter")
    largest = max(path.stat().st_size for path in base.glob("*.safetensors"))
    place = tmp_path / "place"
    place.mkdir()
    program = """
        import json, resource, signal, sys
        from lora_lab import LoraLabError, Session
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        session = Session(cache=False)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]), resource.RLIM_INFINITY))
        try:
            session.merge([sys.argv[1]], base=sys.argv[2], output=sys.argv[3])
        except LoraLabError as error:
            print(json.dumps({"kind": type(error).__name__, "message": error.message}))
    """
    for limit in (0, largest // 4):
        told = run(program, adapter, base, place / "out", limit)
        assert told["kind"] == "OperationError"
        assert "\n" not in told["message"]
        assert list(place.iterdir()) == []


def _tmpfs_refused() -> str:
    """Why no small file system can be mounted here, in a namespace of its own; empty where it can."""
    if not sys.platform.startswith("linux") or shutil.which("unshare") is None:
        return "needs the namespaces of Linux"
    with tempfile.TemporaryDirectory() as folder:
        script = f"mount -t tmpfs -o size=64k tmpfs {shlex.quote(folder)}"
        done = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, check=False)
    return done.stderr.strip()


def test_a_disk_that_is_full_in_the_middle(tmp_path: Path) -> None:
    """A tmpfs that says no wherever it fills up: one sentence, what is left is named; enlarged, the same bytes.

    That it is too small is not seen before, as when somebody else fills the disk meanwhile.
    """
    if reason := _tmpfs_refused():
        pytest.skip(f"no small file system can be mounted here: {reason}")
    base, adapter = write_sharded(tmp_path / "base"), write_adapter(tmp_path / "adapter")
    place = tmp_path / "place"
    place.mkdir()
    program = """
        import hashlib, json, pathlib, subprocess, sys
        from lora_lab import LoraLabError, Session
        from lora_lab.storage.disk import Disk
        adapter, base, place = sys.argv[1:]
        place = pathlib.Path(place)
        Disk.free_bytes = lambda self, folder: 1 << 40
        told = []

        def mount(*how):
            subprocess.run(["mount", *how, str(place)], check=True)

        def merge(resume):
            try:
                Session(cache=False).merge([adapter], base=base, output=place / "out", resume=resume)
            except LoraLabError as error:
                left = sorted(path.name for path in place.iterdir())
                return {"kind": type(error).__name__, "said": f"{error.message} {error.hint}", "left": left}
            return {}

        def bytes_now():
            files = [path for path in (place / "out").rglob("*") if path.is_file()]
            files = [path for path in files if path.name != "lora_lab_receipt.json"]
            return {str(path.relative_to(place)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

        for pages in range(1, 14, 2):
            mount("-t", "tmpfs", "-o", f"size={4 * pages}k", "tmpfs")
            first = merge(resume=False)
            mount("-o", "remount,size=1m")
            told.append([first, merge(resume=True) if first else {}, bytes_now()])
            subprocess.run(["umount", str(place)], check=True)
        print(json.dumps(told))
    """
    command = ["unshare", "-rm", sys.executable, "-c", textwrap.dedent(program), str(adapter), str(base), str(place)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    failures = [first for first, _, _ in told if first]
    assert failures, "every size was enough"
    assert any(first["left"] for first in failures), "none failed after the first file"
    wanted = told[-1][2]
    assert wanted
    for first, again, found in told:
        assert again == {}
        assert found == wanted
        if first:
            assert first["kind"] == "OperationError"
            assert "\n" not in first["said"]
            assert all(name.startswith(".out.lora_lab") for name in first["left"])
            assert not first["left"] or any(name in first["said"] for name in first["left"])


class Small(Disk):
    """A disk with little room; `rooms` is that of some folders."""

    def __init__(self, **rooms: int) -> None:
        self.rooms = rooms

    def free_bytes(self, folder: Path) -> int:
        return self.rooms.get(folder.name, 1000)


def test_no_room_is_known_before_the_first_byte(tmp_path: Path) -> None:
    """What it takes and what is free are told; nothing is there afterwards."""
    from lora_lab.formats.factors import FactorReader
    from lora_lab.operations.merge import merge

    session = Session(cache=False)
    base = session.base(str(write_sharded(tmp_path / "base")))
    adapter = session.adapter(str(write_adapter(tmp_path / "adapter")))
    place = tmp_path / "place"
    place.mkdir()
    with pytest.raises(OperationError, match=r"takes .* got .* free where it is to be"):
        merge([adapter], base, place / "out", reader=FactorReader(), disk=Small())
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("is_dry", [True, False])
def test_the_undo_file_needs_room_too(is_dry: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the disk of the output or on another: refused below what it usually takes, told below what it can take."""
    from lora_lab.formats.factors import FactorReader
    from lora_lab.operations import room
    from lora_lab.operations.merge import merge

    session = Session(cache=False)
    base = session.base(str(write_sharded(tmp_path / "base")))
    adapter = session.adapter(str(write_adapter(tmp_path / "adapter")))
    place, other = tmp_path / "place", tmp_path / "other"
    place.mkdir()
    other.mkdir()

    def run(undo: Path, **rooms: int) -> Any:
        how: dict[str, Any] = {"reader": FactorReader(), "undo": undo, "dry_run": is_dry, "overwrite": True}
        return merge([adapter], base, place / "out", disk=Small(**rooms), **how)

    plan = merge([adapter], base, place / "out", reader=FactorReader(), undo=place / "undo", dry_run=True)
    written, most = (plan.to_json()["plan"][name] for name in ("bytes_to_write", "undo_bytes_at_most"))
    output = written + (4 << 20)
    with pytest.raises(OperationError, match=r"undo' takes about .* beside the .* of the output, got"):
        run(place / "undo", place=output + 100)
    assert list(place.iterdir()) == []
    for free, told in ((output + most, []), (output + most - 1, ["undo_may_not_fit"])):
        report = run(place / "undo", place=free)
        assert [finding.code for finding in report.findings if finding.code == "undo_may_not_fit"] == told
    if not is_dry:
        assert (place / "undo").stat().st_size <= most
    monkeypatch.setattr(room, "_device", lambda folder: hash(folder.name))
    with pytest.raises(OperationError, match=r"undo' takes about [^,]*, got"):
        run(other / "undo", place=output, other=100)
    assert run(other / "undo", place=output, other=most).verdict is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs the peak of a process's memory in kilobytes")
def test_memory_for_blocks_of_the_largest_tensor(tmp_path: Path) -> None:
    """A weight of 8192×28672 in bf16, 470 MB, is merged in less than 300 MB above torch, and rightly."""
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    base.mkdir()
    weight = torch.full((8192, 28672), 0.5, dtype=torch.bfloat16)
    save_file({"model.layers.0.mlp.down_proj.weight": weight}, base / "model.safetensors")
    del weight
    (base / "config.json").write_text("{}")
    start = "base_model.model.model.layers.0.mlp.down_proj"
    factors = {f"{start}.lora_A.weight": torch.ones(2, 28672), f"{start}.lora_B.weight": torch.full((8192, 2), 0.25)}
    write_adapter(adapter, factors, rank=2, target_modules=["down_proj"])
    program = """
        import json, resource, sys
        import torch, safetensors.torch
        from lora_lab import Session
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        report = Session(cache=False).merge([sys.argv[1]], base=sys.argv[2], output=sys.argv[3])
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        print(json.dumps({"megabytes": peak / 1024, "changed": report.table("modules").rows[0]["changed_fraction"]}))
    """
    told = run(program, adapter, base, tmp_path / "out")
    assert told["changed"] == 1.0
    assert told["megabytes"] < LARGE_MB
    for path in (tmp_path / "out" / "model.safetensors", base / "model.safetensors"):
        path.unlink()  # not kept among the folders of past runs


def test_a_model_made_of_it_says_what_pefts_says(tmp_path: Path) -> None:
    """transformers loads the merged sample; its logits are those of PEFT's own merge, within what the type leaves."""
    transformers = pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    base, adapter = SAMPLES / "base", SAMPLES / "banking77-r8-seed0"
    ids = torch.randint(5, 900, (3, 12), generator=torch.Generator().manual_seed(0))

    def model(folder: Path) -> Any:
        return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def logits(of: Any) -> torch.Tensor:
        with torch.no_grad():
            found: torch.Tensor = of(input_ids=ids).logits
        return found

    expected = logits(peft.PeftModel.from_pretrained(model(base), adapter).merge_and_unload())
    distance = {}
    for dtype in ("float32", "bfloat16"):
        Session(cache=False).merge([str(adapter)], base=str(base), output=tmp_path / dtype, dtype=dtype)
        distance[dtype] = float((logits(model(tmp_path / dtype)) - expected).norm() / expected.norm())
    assert distance["float32"] < 64 * torch.finfo(torch.float32).eps
    assert distance["bfloat16"] < 4 * torch.finfo(torch.bfloat16).eps
    assert float((logits(model(base)) - expected).norm() / expected.norm()) > 8 * torch.finfo(torch.bfloat16).eps
