"""Plugins are loaded one by one: attributed, checked, and never at each other's cost."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lora_lab.extension import hooks
from lora_lab.extension.contracts import CommandSpec, Need, Recognition
from lora_lab.extension.hooks import hookimpl
from lora_lab.extension.registry import PluginState, Registry, load_registry


class Probe:
    """One value that has every member that any contract asks for."""

    def __init__(self, id: str = "probe") -> None:
        self.id = id
        self.title, self.summary, self.reference, self.suffix = "Probe", "It probes.", "", ".probe"
        self.parameters: tuple[Any, ...] = ()
        self.subjects, self.takes_models, self.base, self.is_exact = (1, 1), False, Need.NO, True
        self.is_low_rank = True

    def run(self, context: Any) -> Any: ...
    def recognise(self, path: Path) -> Recognition:
        return Recognition.NO

    def read(self, path: Path, options: Any) -> Any: ...
    def combine(self, factors: Any, strengths: Any, parameters: Any) -> Any: ...
    def prepare(self, scene: Any, first: int) -> Any: ...
    def export(self, report: Any) -> bytes:
        return b""


def plugin_with(hook: str, value: Any) -> SimpleNamespace:
    """A plugin of one hook that returns one value."""

    def implementation() -> Any:
        return [value]

    implementation.__name__ = hook
    return SimpleNamespace(**{hook: hookimpl(implementation)})


COMMAND = CommandSpec("probe", "It probes.", run=lambda *_: None)  # type: ignore[arg-type,return-value]


HOOKS: dict[str, tuple[str, Any]] = {
    "lora_lab_adapter_formats": ("formats", Probe()),
    "lora_lab_analyses": ("analyses", Probe()),
    "lora_lab_merge_methods": ("methods", Probe()),
    "lora_lab_swap_strategies": ("strategies", Probe()),
    "lora_lab_exporters": ("exporters", Probe()),
    "lora_lab_commands": ("commands", COMMAND),
}


@pytest.mark.parametrize("hook", list(HOOKS))
def test_each_hook_has_its_shelf(hook: str) -> None:
    """What a plugin gives arrives there under its own name, and what is none of its kind is refused by name."""
    shelf, value = HOOKS[hook]
    registry = load_registry({"one": plugin_with(hook, value)}, load_plugins=False)
    assert getattr(registry, shelf) == {"probe": value}
    assert registry.owner_of(shelf, "probe") == "one"
    refused = load_registry({"two": plugin_with(hook, object())}, load_plugins=False)
    assert getattr(refused, shelf) == {}
    assert refused.plugins[0].state is PluginState.FAILED
    assert hook in refused.plugins[0].errors[0]


def test_every_hook_is_tested() -> None:
    """A hook that is added without a test is noticed."""
    assert {name for name in vars(hooks) if name.startswith("lora_lab_")} == HOOKS.keys()


def test_duplicates_name_both_owners() -> None:
    """The first keeps the name; the second is told who has it."""
    first, second = Probe("same"), Probe("same")
    registry = load_registry(
        {"one": plugin_with("lora_lab_analyses", first), "two": plugin_with("lora_lab_analyses", second)},
        load_plugins=False,
    )
    assert registry.analyses == {"same": first}
    assert "'two'" in registry.plugins[1].errors[0]
    assert "'one'" in registry.plugins[1].errors[0]


INSTALLED = {
    "good": """
        from lora_lab import hookimpl
        from lora_lab.extension.contracts import Need
        class Good:
            id = "good"; title = summary = reference = ""; parameters = (); subjects = (1, 1)
            takes_models = False; base = Need.NO
            def run(self, context): raise RuntimeError("boom")
        @hookimpl
        def lora_lab_analyses(): return [Good()]
    """,
    "missing": "import a_module_that_nobody_has",
    "syntax": "def broken(:",
    "exits": "import sys; sys.exit(3)",
    "interrupts": "raise KeyboardInterrupt",
    "misspelt": """
        from lora_lab import hookimpl
        @hookimpl
        def lora_lab_analysis(): return []
    """,
    "raises": """
        from lora_lab import hookimpl
        @hookimpl
        def lora_lab_analyses(): raise ValueError("no analyses today")
    """,
    "wrong": """
        from lora_lab import hookimpl
        @hookimpl
        def lora_lab_analyses(): return 3
    """,
    "prints": """
        print("hello from a plugin")
        from lora_lab import hookimpl
        @hookimpl
        def lora_lab_analyses():
            print("and again")
            return []
    """,
    "exits_in_hook": """
        import sys
        from lora_lab import hookimpl
        @hookimpl
        def lora_lab_analyses(): sys.exit(0)
    """,
    "takes_a_command": """
        from lora_lab import hookimpl
        from lora_lab.extension.contracts import CommandSpec
        @hookimpl
        def lora_lab_commands(): return [CommandSpec("ls", "Mine.", run=print)]
    """,
    "more_arguments": """
        from lora_lab import hookimpl
        @hookimpl
        def lora_lab_analyses(session): return []
    """,
    "takes_ours": """
        from lora_lab import hookimpl
        from lora_lab.extension.contracts import Need
        class Mine:
            id = "spectrum"; title = summary = reference = ""; parameters = (); subjects = (1, 1)
            takes_models = False; base = Need.NO
            def run(self, context): pass
        @hookimpl
        def lora_lab_analyses(): return [Mine()]
    """,
}
SENTENCES = {
    "missing": "ModuleNotFoundError",
    "syntax": "SyntaxError",
    "exits": "SystemExit",
    "interrupts": "KeyboardInterrupt",
    "misspelt": "lora_lab_analysis",
    "raises": "no analyses today",
    "wrong": "lora_lab_analyses",
    "takes_ours": "'takes_ours' is taken: 'analyses'",
    "exits_in_hook": "SystemExit",
    "takes_a_command": "'takes_a_command' is taken: 'built-in'",
    "more_arguments": "session",
}


def install(site: Path, name: str, source: str, point: str | None = None) -> None:
    """Put a distribution where the interpreter finds it; its entry point is called like it, or `point`."""
    (site / f"faulty_{name}.py").write_text(textwrap.dedent(source))
    info = site / f"faulty_{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: faulty-{name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[lora_lab]\n{point or name} = faulty_{name}\n")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Distributions, all but two of them faulty, where the interpreter finds them."""
    site = tmp_path / "site"
    site.mkdir()
    for name, source in INSTALLED.items():
        install(site, name, source)
    monkeypatch.syspath_prepend(str(site))
    yield site
    for name in list(sys.modules):
        if name.startswith("faulty_"):
            del sys.modules[name]


def everything() -> Registry:
    from lora_lab.analyses import plugin as analyses

    return load_registry({"analyses": analyses})


def test_faulty_plugins_harm_nobody(installed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each fault is one sentence in its own record; the good plugin and the built-ins are there."""
    registry = everything()
    records = {record.name: record for record in registry.plugins}
    assert registry.owner_of("analyses", "spectrum") == "analyses"
    assert registry.owner_of("analyses", "good") == "good"
    assert records["good"].origin == "faulty-good 1.0"
    for name, fragment in SENTENCES.items():
        assert records[name].state is PluginState.FAILED, name
        assert fragment in records[name].errors[0]
        assert "\n" not in records[name].errors[0]
    assert records["prints"].state is PluginState.LOADED
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("chosen", "expected"), [("good,prints", {"good", "prints"}), ("", set())])
def test_plugins_can_be_chosen(
    installed: Path, monkeypatch: pytest.MonkeyPatch, chosen: str, expected: set[str]
) -> None:
    """A variable restricts what is loaded; an empty one loads nothing. The others are listed as disabled, unopened."""
    monkeypatch.setenv("LORA_LAB_PLUGINS", chosen)
    records = [record for record in everything().plugins if record.name in INSTALLED]
    assert {record.name for record in records} == set(INSTALLED)
    assert {record.name for record in records if record.state is not PluginState.DISABLED} == expected
    assert {name for name in sys.modules if name.startswith("faulty_")} == {f"faulty_{name}" for name in expected}


def test_no_plugins_loads_none(installed: Path) -> None:
    """They are listed as disabled, and nothing of theirs has run."""
    registry = load_registry({}, load_plugins=False)
    assert {record.state for record in registry.plugins} == {PluginState.DISABLED}
    assert not any(name.startswith("faulty_") for name in sys.modules)


def test_two_plugins_of_one_name(installed: Path) -> None:
    """The first is kept; the second is told both distributions, whether the first is a built-in or not."""
    install(installed, "twin", INSTALLED["good"], point="good")
    install(installed, "room", INSTALLED["good"], point="analyses")
    registry = everything()
    for name, first, second in (("good", "faulty-good", "faulty-twin"), ("analyses", "built-in", "faulty-room")):
        kept, refused = (record for record in registry.plugins if record.name == name)
        assert (kept.state, refused.state) == (PluginState.LOADED, PluginState.FAILED)
        assert first in refused.errors[0]
        assert second in refused.errors[0]
        assert registry.plugin_of("analyses", "spectrum" if name == "analyses" else "good") is kept


def test_metadata_that_cannot_be_read(installed: Path) -> None:
    """An entry point of nonsense fails alone; a distribution without metadata loads under its module's name."""
    (installed / "faulty_missing-1.0.dist-info" / "entry_points.txt").write_text("[lora_lab]\nmissing = a b c:\n")
    (installed / "faulty_good-1.0.dist-info" / "METADATA").unlink()
    records = {record.name: record for record in everything().plugins}
    assert records["missing"].state is PluginState.FAILED
    assert (records["good"].state, records["good"].origin) == (PluginState.LOADED, "faulty_good")
