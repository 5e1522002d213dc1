"""Where output goes, what happens when it cannot, and plugins that misbehave in front of a person."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import textwrap
from pathlib import Path

import click
import pytest
from builders import MODULES, factors, write_adapter

from lora_lab.cli.commands import program
from lora_lab.extension.registry import BUILT_IN_COMMANDS

PROGRAM = [sys.executable, "-P", "-m", "lora_lab"]


@pytest.fixture
def adapter(tmp_path: Path) -> str:
    return str(write_adapter(tmp_path / "adapter"))


def environment(**more: str) -> dict[str, str]:
    """That of this test, with what it buffers written when it ends, as in any shell."""
    return {name: value for name, value in {**os.environ, **more}.items() if name != "PYTHONUNBUFFERED"}


@pytest.mark.parametrize("buffering", [{}, {"PYTHONUNBUFFERED": "1"}])
@pytest.mark.parametrize(
    "arguments", [("inspect", "--json"), ("inspect",), ("ls", "--format", "csv"), ("--help",), ("ls", "--help")]
)
def test_a_closed_pipe_is_exit_0_and_no_word(
    arguments: tuple[str, ...], buffering: dict[str, str], adapter: str
) -> None:
    """Whoever reads it may stop at any time, however little was printed; 1 would mean that a check says no."""
    reading, writing = os.pipe()
    os.close(reading)
    words = [*arguments] if "--help" in arguments else [arguments[0], adapter, *arguments[1:]]
    done = subprocess.run(
        [*PROGRAM, *words],
        stdout=writing,
        stderr=subprocess.PIPE,
        env={**environment(), **buffering},
        text=True,
        check=False,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full here")
@pytest.mark.parametrize("arguments", [("inspect", "--json"), ("inspect",), ("ls", "--format", "csv"), ("--version",)])
def test_a_full_disk_is_exit_3_and_one_sentence(arguments: tuple[str, ...], adapter: str) -> None:
    """Even where everything fits into the buffer and fails only at the end."""
    words = [*arguments] if arguments[0].startswith("-") else [arguments[0], adapter, *arguments[1:]]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*PROGRAM, *words], stdout=full, stderr=subprocess.PIPE, env=environment(), text=True, check=False
        )
    assert done.returncode == 3
    assert done.stderr.startswith("lora-lab: The output could not be read or written: no space left on device.")
    assert len(done.stderr.splitlines()) <= 2


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8:strict", "utf-8"])
def test_any_encoding_of_stdout(encoding: str, tmp_path: Path) -> None:
    """Tables show codes for what it lacks; JSON stays JSON with the same values; a name may even be no text at all."""
    write_adapter(tmp_path / "library" / "äα😀")
    names = {"äα😀"}
    try:
        write_adapter(tmp_path / "library" / "no\udcfftext")
        names.add("no\udcfftext")
    except OSError:
        pass  # this file system takes text alone
    command = [*PROGRAM, "ls", str(tmp_path / "library")]
    outputs = {}
    for option in ([], ["--json"], ["--format", "json"], ["--format", "csv"]):
        done = subprocess.run(
            [*command, *option], env=environment(PYTHONIOENCODING=encoding), capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr
        outputs[" ".join(option)] = done.stdout
    spoken = encoding.partition(":")[0]
    assert "library/" in outputs[""].decode(spoken)
    for option in ("--json", "--format json"):
        text = outputs[option].decode(spoken if option == "--json" else "utf-8")
        assert {entry["name"] for entry in json.loads(text)["adapters"]} == names
    assert len(outputs["--format csv"].decode("utf-8").splitlines()) == 1 + len(names)


def test_debug_shows_where_and_keeps_the_code(tmp_path: Path) -> None:
    """A traceback when it is asked for; exit 1 would mean that a check says no."""
    (tmp_path / "sitecustomize.py").write_text(
        "import lora_lab.session.session as s\ndef boom(*a, **k): raise RuntimeError('boom')\ns.Session.ls = boom\n"
    )
    path = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}".rstrip(os.pathsep)
    done = subprocess.run(
        [*PROGRAM, "ls", str(tmp_path)],
        env=environment(PYTHONPATH=path, LORA_LAB_DEBUG="1"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1] == "lora-lab: An unexpected fault: RuntimeError: boom."


def on_a_terminal(*arguments: str) -> tuple[str, str]:
    """Stdout, and what a terminal that stands for stderr was told."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*PROGRAM, *arguments], stdout=subprocess.PIPE, stderr=theirs, env=environment(), text=True
    ) as process:
        os.close(theirs)
        assert process.stdout is not None
        printed = process.stdout.read()
        assert process.wait(60) == 0
    told = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # nobody holds the other end any more
            break
        if not part:
            break
        told += part
    os.close(ours)
    return printed, told.decode()


def test_progress_is_for_terminals(adapter: str) -> None:
    """Count, rate and time left on stderr, taken away at the end; stdout is data, and --no-progress is silent."""
    printed, told = on_a_terminal("spectrum", adapter, "--no-cache", "--json")
    assert len(json.loads(printed)["modules"]) == len(MODULES)
    assert f"{len(MODULES)}/{len(MODULES)}" in told
    assert "/s" in told
    assert "left" in told
    assert told.endswith("\r\x1b[K")
    for silent in ("--no-progress", "--quiet"):
        assert on_a_terminal("spectrum", adapter, "--no-cache", "--json", silent) == (printed, "")


def test_the_names_of_our_commands_are_reserved() -> None:
    """What no plugin may take is exactly what there is."""
    assert set(BUILT_IN_COMMANDS) == set(program.list_commands(click.Context(program)))


MISBEHAVING = """
    import sys
    from lora_lab import Report, hookimpl
    from lora_lab.domain.parameters import Parameter, ParameterKind
    from lora_lab.extension.contracts import CommandSpec, Need, Recognition
    class Probe:
        title = summary = reference = ""; parameters = (); subjects = (1, 1); takes_models = False; base = Need.NO
        def __init__(self, id, act): self.id, self.run = id, act
    class Format:
        id = "odd"; title = "Odd"
        def recognise(self, path): raise RuntimeError("boom")
        def read(self, path, options): raise RuntimeError("boom")
    @hookimpl
    def lora_lab_analyses(): return [Probe("leaves", lambda context: sys.exit(0)), Probe("three", lambda context: 3)]
    @hookimpl
    def lora_lab_adapter_formats(): return [Format()]
    @hookimpl
    def lora_lab_commands():
        seed = Parameter("seed", "Seed", ParameterKind.INTEGER, 1)
        hyphen = Parameter("how-many", "How many", ParameterKind.INTEGER, 1)
        json = Parameter("as_json", "Not the option", ParameterKind.INTEGER, 5)
        def told(session, sources, parameters): return Report("told", "Told", parameters=parameters)
        return [CommandSpec("seedy", "", told, (seed,)), CommandSpec("told", "Tell.", told, (hyphen, json)),
                CommandSpec("gone", "", lambda *_: sys.exit(0)), CommandSpec("four", "", lambda *_: 4)]
"""


@pytest.fixture
def misbehaving(tmp_path: Path) -> str:
    """PYTHONPATH on which a plugin is installed that loads well and works badly."""
    site = tmp_path / "site"
    info = site / "misbehaving-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "misbehaving.py").write_text(textwrap.dedent(MISBEHAVING))
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: misbehaving\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[lora_lab]\nmisbehaving = misbehaving\n")
    return f"{site}{os.pathsep}{os.environ.get('PYTHONPATH', '')}".rstrip(os.pathsep)


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (("analyze", "leaves"), "analysis 'leaves' of the plugin 'misbehaving' failed: SystemExit: 0."),
        (("analyze", "three"), "analysis 'three' of the plugin 'misbehaving' returned 'int', expected a Report."),
        (("gone",), "command 'gone' of the plugin 'misbehaving' failed: SystemExit: 0."),
        (("four",), "command 'four' of the plugin 'misbehaving' returned 'int', expected a Report."),
        (("seedy",), "command 'seedy' of the plugin 'misbehaving' declares a parameter for the option '--seed'"),
    ],
)
def test_a_plugin_that_misbehaves_is_exit_3(
    words: tuple[str, ...], fragment: str, misbehaving: str, adapter: str
) -> None:
    """Never 0 with nothing on stdout, which a script would take for success."""
    done = subprocess.run(
        [*PROGRAM, *words, adapter, "--json"],
        env=environment(PYTHONPATH=misbehaving),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (3, "")
    assert fragment in done.stderr
    assert "Traceback" not in done.stderr


def test_the_rest_goes_on(misbehaving: str, adapter: str) -> None:
    """Its format fails at every look, and its parameters are called like our own; lists, spectra and it work."""
    shared = environment(PYTHONPATH=misbehaving)
    for words in (("ls", str(Path(adapter).parent)), ("spectrum", adapter), ("analyses",), ("plugins",)):
        done = subprocess.run([*PROGRAM, *words, "--json"], env=shared, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        json.loads(done.stdout)
    done = subprocess.run(
        [*PROGRAM, "told", "--how-many", "3", "--json"], env=shared, capture_output=True, text=True, check=False
    )
    assert json.loads(done.stdout)["parameters"] == {"how-many": 3, "as_json": 5}


def test_a_format_that_is_not_installed_is_refused_before_the_work(adapter: str) -> None:
    """Even before the input is looked at."""
    done = subprocess.run(
        [*PROGRAM, "spectrum", f"{adapter}-nowhere", "--format", "pdf"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "There is no exporter 'pdf'" in done.stderr


def test_the_shell_completes(tmp_path: Path) -> None:
    """Names of commands, for a shell that has asked for them."""
    done = subprocess.run(
        PROGRAM,
        env=environment(_LORA_LAB_COMPLETE="bash_complete", COMP_WORDS="lora-lab sp", COMP_CWORD="1"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "plain,spectrum\n"


def test_many_warnings_of_one_kind_are_folded(tmp_path: Path) -> None:
    """A person reads the first three and how many more there are; JSON has every one."""
    modules = {f"model.layers.{layer}.q_proj": (24, 16) for layer in range(9)}
    wide = {name: (24, 16 if name.endswith("s.0.q_proj") else 32) for name in modules}
    pair = [str(write_adapter(tmp_path / name, factors(shapes))) for name, shapes in (("a", modules), ("b", wide))]
    said, data = (
        subprocess.run(
            [*PROGRAM, "overlap", *pair, *more], capture_output=True, env=environment(), text=True, check=False
        )
        for more in ([], ["--json"])
    )
    lines = [line for line in said.stderr.splitlines() if "expected one shape" in line]
    assert len(lines) == 3
    assert "'model.layers.3.q_proj'" in lines[2]
    assert lines[2].endswith("And 5 more like this; --json lists them.")
    assert sum(one["code"] == "shape_mismatch" for one in json.loads(data.stdout)["warnings"]) == 8
