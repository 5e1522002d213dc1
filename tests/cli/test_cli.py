"""The command line through a subprocess: stdout is data, exit codes mean what the contract says, no tracebacks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from builders import MODULES, factors, write_adapter, write_base

from lora_lab import Session

ROOT = Path(__file__).resolve().parents[2]


def lora_lab(*arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the program as a person would."""
    command = [sys.executable, "-P", "-m", "lora_lab", *arguments]
    return subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=120
    )


def document_of(*arguments: str) -> dict[str, Any]:
    """The one JSON document that a command prints."""
    done = lora_lab(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["schema"] == "lora-lab/1"
    assert document["command"] == arguments[0]
    assert isinstance(document["inputs"], list)
    assert isinstance(document["warnings"], list)
    return document  # type: ignore[no-any-return]


def refused(code: int, fragment: str, *arguments: str, **environment: str) -> str:
    """The command fails with this code, one sentence and a next step on stderr, and nothing on stdout."""
    done = lora_lab(*arguments, **environment)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("lora-lab: ")
    assert fragment in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 2
    return done.stderr


@pytest.fixture
def adapter(tmp_path: Path) -> str:
    return str(write_adapter(tmp_path / "adapter", seed=3))


def test_ls(tmp_path: Path) -> None:
    """Adapters and bases with the promised fields; a broken one has its reason and stops nothing."""
    write_adapter(tmp_path / "good")
    write_base(tmp_path / "base")
    broken = write_adapter(tmp_path / "broken")
    (broken / "adapter_model.safetensors").write_bytes(b"")
    document = document_of("ls", str(tmp_path))
    fields = [
        "name",
        "path",
        "format",
        "base_model",
        "rank_min",
        "rank_max",
        "alpha",
        "modules",
        "parameters",
        "size_bytes",
        "dtype",
        "error",
    ]
    by_name = {entry["name"]: entry for entry in document["adapters"]}
    assert set(by_name) == {"good", "broken"}
    assert all(set(fields) <= set(entry) for entry in document["adapters"])
    assert by_name["good"]["error"] is None
    assert "0 bytes" in by_name["broken"]["error"]
    assert all({"name", "path", "parameters", "size_bytes", "shards"} <= set(base) for base in document["bases"])
    assert len(document["bases"]) == 1


def test_inspect(adapter: str) -> None:
    """Everything that the contract lists."""
    document = document_of("inspect", adapter)
    assert (document["format"], document["peft_type"], document["base_model"]) == ("peft", "LORA", "base")
    assert (document["rank_min"], document["rank_max"]) == (4, 4)
    assert document["features"] == []
    (first, *_) = document["modules"]
    assert set(first) >= {"module", "kind", "shape", "rank", "alpha", "scaling", "dtype", "parameters"}
    assert first["scaling"] == 2.0


def test_inspect_strict_says_no(tmp_path: Path, adapter: str) -> None:
    """Exit 1 when there is something to warn of, 0 when there is not."""
    assert lora_lab("inspect", adapter, "--strict").returncode == 0
    odd = str(write_adapter(tmp_path / "odd", alpha=0))
    done = lora_lab("inspect", odd, "--strict")
    assert done.returncode == 1
    assert "Alpha is 0" in done.stderr


def test_spectrum_has_the_digits_of_the_library(adapter: str) -> None:
    """Every number of the JSON equals the library's to the last bit."""
    document = document_of("spectrum", adapter)
    assert document == json.loads(json.dumps(Session(cache=False).spectrum(adapter).to_json()))
    first = document["modules"][0]
    names = (
        "module shape rank scaling singular_values frobenius_norm spectral_norm nuclear_norm stable_rank "
        "effective_rank participation_ratio numerical_rank energy_rank"
    )
    assert set(first) >= set(names.split())
    assert set(first["energy_rank"]) == {"0.5", "0.9", "0.95", "0.99"}
    assert set(document["totals"]) >= {"modules", "frobenius_norm", "largest_module"}


def test_module_option_can_be_repeated(adapter: str) -> None:
    """Each glob adds modules."""
    document = document_of("spectrum", adapter, "--module", "v_proj", "--module", "model.layers.10.*")
    assert [row["module"] for row in document["modules"]] == [
        "model.layers.2.self_attn.v_proj",
        "model.layers.10.self_attn.q_proj",
    ]


def test_analyze_runs_any_analysis(adapter: str) -> None:
    """The built-in analysis is reachable by its id, too."""
    done = lora_lab("analyze", "spectrum", adapter, "--json")
    assert len(json.loads(done.stdout)["modules"]) == len(MODULES)


def test_plugins_and_analyses_list_what_is_there() -> None:
    """The built-ins are listed like any plugin."""
    assert {"formats", "analyses"} <= {record["name"] for record in document_of("plugins")["plugins"]}
    assert "spectrum" in {analysis["id"] for analysis in document_of("analyses")["analyses"]}


def test_text_output_is_on_stdout_and_warnings_are_not(tmp_path: Path) -> None:
    """A person's table goes to stdout without escape codes; warnings go to stderr and --quiet drops them."""
    odd = str(write_adapter(tmp_path / "odd", alpha=-8))
    done = lora_lab("inspect", odd)
    assert "model.layers.10.self_attn.q_proj" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr
    assert "Alpha is negative" in done.stderr
    assert lora_lab("inspect", odd, "--quiet").stderr == ""


@pytest.mark.parametrize("columns", ["60", "80", "120"])
def test_tables_fit_the_terminal(adapter: str, columns: str) -> None:
    """No line is wider than the terminal, and the module column is always there."""
    done = lora_lab("spectrum", adapter, COLUMNS=columns)
    assert all(len(line) <= int(columns) for line in done.stdout.splitlines())
    assert "q_proj" in done.stdout


def test_hostile_names_are_shown_not_obeyed(tmp_path: Path) -> None:
    """Escape codes in a module's name are spelled out."""
    tensors = factors({"layers.0.\x1b]52;c;QQ\x07[red]q_proj": (8, 8)})
    done = lora_lab("spectrum", str(write_adapter(tmp_path / "a", tensors)))
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert r"\x1b]52;c;QQ\x07[red]q_proj" in done.stdout


def test_wrong_input_is_exit_2(tmp_path: Path, adapter: str) -> None:
    """Files and words that are wrong."""
    refused(2, "does not exist", "spectrum", str(tmp_path / "nowhere"))
    refused(2, "nowhere", "ls", str(tmp_path / "nowhere"))
    refused(2, "No such command", "spectrums")
    refused(2, "Missing argument", "spectrum")
    refused(2, "expected one of", "analyze", "nothing", adapter)
    refused(2, "expected K=V", "analyze", "spectrum", adapter, "--param", "x")
    refused(2, "No module", "spectrum", adapter, "--module", "nothing")
    refused(2, "abacus", "spectrum", adapter, "--device", "abacus")
    bad = factors()
    for tensor in bad.values():
        tensor[0, 0] = float("nan")
    refused(2, "NaN", "spectrum", str(write_adapter(tmp_path / "nan", bad)))


def test_one_module_with_nan_leaves_the_others(tmp_path: Path) -> None:
    """Exit 0, undefined numbers as null, and a warning that names module, tensor and count."""
    bad = factors()
    name = next(iter(bad))
    bad[name][0, :2] = float("nan")
    place = str(write_adapter(tmp_path / "nan", bad))
    done = lora_lab("spectrum", place, "--json")
    found = json.loads(done.stdout, parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))
    module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
    undefined = [row["module"] for row in found["modules"] if row["singular_values"] is None]
    assert (done.returncode, undefined) == (0, [module])
    (warning,) = (one for one in found["warnings"] if one["code"] == "not_finite")
    assert warning["module"] == module
    assert all(part in warning["message"] for part in (name, module, "holds 2 values", "NaN"))
    printed = lora_lab("spectrum", place)
    assert printed.returncode == 0
    assert module in printed.stdout
    assert module in printed.stderr


def test_open_needs_a_terminal(adapter: str) -> None:
    """Without one it says what to use instead."""
    assert "ls --json" in refused(2, "terminal", "open", adapter)


def test_an_unexpected_fault_is_a_sentence_and_exit_3(tmp_path: Path, adapter: str) -> None:
    """A fault of ours is one line, and shows where when asked."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import lora_lab.session.session as s\ndef boom(*a, **k): raise RuntimeError('boom')\ns.Session.ls = boom\n"
    )
    path = f"{site}{os.pathsep}{os.environ.get('PYTHONPATH', '')}".rstrip(os.pathsep)
    refused(3, "RuntimeError: boom", "ls", str(tmp_path), PYTHONPATH=path)
    shown = lora_lab("ls", str(tmp_path), PYTHONPATH=path, LORA_LAB_DEBUG="1")
    assert "Traceback" in shown.stderr


def test_a_closed_pipe_is_no_error(adapter: str) -> None:
    """Reading only the first line of the output ends quietly."""
    command = f"{sys.executable} -P -m lora_lab spectrum {adapter} --json | head -c 10; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


def test_a_closed_pipe_does_not_turn_a_no_into_a_yes(tmp_path: Path, adapter: str) -> None:
    """The exit code is the verdict's, whoever reads how much of it."""
    here = write_adapter(tmp_path / "other", seed=4)
    for form in ("", "--json", "--format json"):
        told = f"{sys.executable} -P -m lora_lab diff {adapter} {here} --exit-code {form}"
        command = f"{told} | true; exit ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert "BrokenPipe" not in done.stderr


LIGHT = {
    "--help": {"torch", "numpy", "rich", "textual", "huggingface_hub", "pluggy"},
    "--version": {"torch", "numpy", "rich", "textual", "huggingface_hub", "pluggy"},
    "ls": {"torch", "numpy", "textual"},
    "inspect": {"torch", "numpy", "textual"},
    "budget": {"torch", "numpy", "textual"},
}


def modules_after(*arguments: str) -> set[str]:
    """Top-level modules that a command has loaded when it ends."""
    code = (
        "import json, sys\nfrom lora_lab.cli import run\n"
        f"run({list(arguments)!r}, open_application=lambda *_: 0)\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stderr.splitlines()[-1]))


@pytest.mark.parametrize("command", LIGHT)
def test_light_commands_load_nothing_heavy(command: str, adapter: str) -> None:
    """Help, versions, lists and inspection start at once."""
    arguments = (command,) if command.startswith("-") else (command, adapter)
    if command == "budget":
        arguments = (command, "--matrix", "2x8x8")
    assert modules_after(*arguments) & LIGHT[command] == set()


def test_this_look_at_modules_can_fail(adapter: str) -> None:
    """A spectrum does load torch, and the look sees it."""
    assert "torch" in modules_after("spectrum", adapter, "--no-cache")


def test_a_module_in_the_working_directory_is_never_run(tmp_path: Path, adapter: str) -> None:
    """``python -m lora_lab`` inside a downloaded folder with a torch.py runs the real torch."""
    (tmp_path / "torch.py").write_text("open('canary', 'w').close()\nraise SystemExit(9)\n")
    path = os.environ.get("PYTHONPATH", str(ROOT))
    done = subprocess.run(
        [sys.executable, "-m", "lora_lab", "spectrum", adapter, "--no-cache", "--json"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "canary").exists()


COMMAND = """
from lora_lab import hookimpl, Report
from lora_lab.domain.parameters import Parameter, ParameterKind
from lora_lab.domain.report import Scalars, Column
from lora_lab.extension.contracts import CommandSpec
def run(session, sources, parameters):
    if parameters["name"] == "nobody": raise RuntimeError("boom")
    values = {"sources": list(sources), **parameters, "analyses": len(session.registry.analyses)}
    return Report("greet", "Greeting", scalars=(Scalars("", "", (Column("name", "Name"),), values),))
@hookimpl
def lora_lab_commands():
    name = Parameter("name", "Who", ParameterKind.TEXT, "you")
    times = Parameter("times", "How often", ParameterKind.INTEGER, 1, minimum=1, maximum=3)
    return [CommandSpec("greet", "Greet somebody.", run, (name, times))]
"""


def test_a_plugins_command_is_a_command(tmp_path: Path) -> None:
    """It parses what it declares, gets a session, and prints like any other; ours are not slowed down by it."""
    info = tmp_path / "greeting-1.0.dist-info"
    info.mkdir()
    (tmp_path / "greeting.py").write_text(COMMAND)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: greeting\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[lora_lab]\ngreeting = greeting\n")
    path = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}".rstrip(os.pathsep)
    done = lora_lab("greet", "a", "b", "--name", "me", "--times", "2", "--json", PYTHONPATH=path)
    document = json.loads(done.stdout)
    assert (document["sources"], document["name"], document["times"]) == (["a", "b"], "me", 2)
    assert document["analyses"] >= 1
    refused(2, "times", "greet", "--times", "9", PYTHONPATH=path)
    refused(
        3, "'greet' of the plugin 'greeting' failed: RuntimeError: boom", "greet", "--name", "nobody", PYTHONPATH=path
    )
    assert "Greet somebody" in lora_lab("greet", "--help", PYTHONPATH=path).stdout


def test_format_prints_what_an_exporter_makes(adapter: str) -> None:
    """CSV on stdout, and a name that is not installed is refused."""
    done = lora_lab("spectrum", adapter, "--format", "csv")
    assert len(done.stdout.splitlines()) == 1 + len(MODULES)
    refused(2, "expected one of: json, csv", "spectrum", adapter, "--format", "pdf")


WAITING = """
import sys, time
from lora_lab import hookimpl
from lora_lab.extension.contracts import CommandSpec
def run(session, sources, parameters):
    print("begun", file=sys.stderr, flush=True)
    while True: time.sleep(0.01)
@hookimpl
def lora_lab_commands(): return [CommandSpec("wait", "Wait.", run, takes_sources=False)]
"""


def test_ctrl_c_is_exit_130(tmp_path: Path) -> None:
    """An interrupted command says so in a word, prints no data and no traceback."""
    info = tmp_path / "waiting-1.0.dist-info"
    info.mkdir()
    (tmp_path / "waiting.py").write_text(WAITING)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: waiting\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[lora_lab]\nwaiting = waiting\n")
    path = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}".rstrip(os.pathsep)
    # A shell that starts the tests in the background leaves SIGINT ignored; a terminal does not.
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); sys.argv[1:] = ['wait']\n"
        "from lora_lab.__main__ import main; sys.exit(main())"
    )
    environment = {**os.environ, "PYTHONPATH": path}
    with subprocess.Popen(
        [sys.executable, "-P", "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stderr is not None
            assert process.stderr.readline() == "begun\n"
            process.send_signal(signal.SIGINT)
            printed, said = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 130
    assert printed == ""
    assert said.strip() == "lora-lab: Cancelled."
