"""What is installed: built-ins and plugins, each value with its owner, each failure with its sentence.

Plugins come by the entry point group ``lora_lab``. One that cannot be imported, that misspells a hook or returns
something else than the contract asks for is recorded as failed and left out; nothing else suffers.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from dataclasses import dataclass, field
from enum import StrEnum
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Final

import pluggy

from lora_lab.errors import quoted
from lora_lab.extension import contracts, hooks
from lora_lab.extension.checking import faults
from lora_lab.safetext import safe_text

if TYPE_CHECKING:
    from collections.abc import Mapping
    from importlib.metadata import EntryPoint

GROUP: Final = "lora_lab"
SELECTION_VARIABLE: Final = "LORA_LAB_PLUGINS"
BUILT_IN: Final = "built-in"
_REASON_LIMIT: Final = 500
# Commands that the command line has of its own: they are no values of a hook, and no plugin may take their names.
BUILT_IN_COMMANDS: Final = (
    "open", "ls", "inspect", "analyze", "report", "plugins", "analyses", "merge", "unmerge", "swap", "verify", "replay",
    "combine", "resize", "methods",
    "extract", "bench", "strategies", "pull", "push",
    "spectrum", "overlap", "amplify", "intruders", "interference", "health", "diff", "budget", "intrinsic", "check",
)  # fmt: skip


class PluginState(StrEnum):
    """How loading went."""

    LOADED = "loaded"
    FAILED = "failed"
    DISABLED = "disabled"  # installed, but not among those chosen for this time


@dataclass(slots=True)
class PluginRecord:
    """One plugin: where it comes from, what it adds, what went wrong."""

    name: str
    origin: str  # built-in, or distribution and version
    distribution: str = ""  # what pip calls it; empty of a built-in
    version: str = ""
    state: PluginState = PluginState.LOADED
    errors: list[str] = field(default_factory=list)
    import_milliseconds: float = 0.0
    contributions: list[str] = field(default_factory=list)  # "analysis rmt"


@dataclass(frozen=True, slots=True)
class _Kind:
    """One hook: the registry's shelf for its values and the type they must have."""

    hook: str
    title: str
    shelf: str
    contract: Any
    key: str = "id"


_KINDS: Final = (
    _Kind("lora_lab_adapter_formats", "format", "formats", contracts.AdapterFormat),
    _Kind("lora_lab_analyses", "analysis", "analyses", contracts.Analysis),
    _Kind("lora_lab_merge_methods", "method", "methods", contracts.MergeMethod),
    _Kind("lora_lab_swap_strategies", "strategy", "strategies", contracts.SwapStrategy),
    _Kind("lora_lab_exporters", "exporter", "exporters", contracts.Exporter),
    _Kind("lora_lab_commands", "command", "commands", contracts.CommandSpec, key="name"),
)


@dataclass(slots=True)
class Registry:
    """Everything installed, by kind and id, in the order of loading."""

    formats: dict[str, contracts.AdapterFormat] = field(default_factory=dict)
    analyses: dict[str, contracts.Analysis] = field(default_factory=dict)
    methods: dict[str, contracts.MergeMethod] = field(default_factory=dict)
    strategies: dict[str, contracts.SwapStrategy] = field(default_factory=dict)
    exporters: dict[str, contracts.Exporter] = field(default_factory=dict)
    commands: dict[str, contracts.CommandSpec] = field(default_factory=dict)
    plugins: list[PluginRecord] = field(default_factory=list)
    owners: dict[tuple[str, str], str] = field(default_factory=dict)

    def owner_of(self, shelf: str, id: str) -> str:  # noqa: A002 - the field's own name
        """Name of the plugin that `id` of `shelf` (``analyses``, ``formats``, …) comes from."""
        return self.owners[shelf, id]

    def plugin_of(self, shelf: str, id: str) -> PluginRecord:  # noqa: A002
        """The plugin that `id` of `shelf` comes from."""
        name = self.owner_of(shelf, id)
        return next(record for record in self.plugins if record.name == name)


def load_registry(builtins: Mapping[str, object], *, load_plugins: bool = True) -> Registry:
    """Register built-ins, then every installed plugin.

    Parameters
    ----------
    builtins : plugin modules under the names of their rooms
    load_plugins : whether plugins from outside are loaded at all
    """
    manager = pluggy.PluginManager(hooks.PROJECT)
    manager.add_hookspecs(hooks)
    registry = Registry(owners={("commands", name): BUILT_IN for name in BUILT_IN_COMMANDS})
    for name, plugin in builtins.items():
        record = PluginRecord(name, BUILT_IN)
        registry.plugins.append(record)
        _register(manager, registry, record, plugin)
    chosen = _selection() if load_plugins else set()
    for point in sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value)):
        record = _record(point)
        if chosen is not None and point.name not in chosen:
            record.state = PluginState.DISABLED
        elif not _is_namesake(registry, record):
            module = _imported(point, record)
            if module is not None:
                _register(manager, registry, record, module)
        registry.plugins.append(record)
    return registry


def _selection() -> set[str] | None:
    """Names of the plugins to load; None means all."""
    chosen = os.environ.get(SELECTION_VARIABLE)
    return None if chosen is None else {name.strip() for name in chosen.split(",")}


def _is_namesake(registry: Registry, record: PluginRecord) -> bool:
    """Whether there is a plugin of that name already; the later one is then left out, since names tell owners apart."""
    first = next((other for other in registry.plugins if other.name == record.name), None)
    if first is not None:
        _fail(
            record,
            f"There are two plugins called {quoted(record.name)}, from {quoted(first.origin)} and from "
            f"{quoted(record.origin)}: the first is kept.",
        )
        return True
    return False


def _record(point: EntryPoint) -> PluginRecord:
    dist = point.dist
    if dist is None or not dist.metadata:  # its METADATA is gone
        return PluginRecord(point.name, point.value)
    return PluginRecord(point.name, f"{dist.name} {dist.version}", dist.name, dist.version)


def _imported(point: EntryPoint, record: PluginRecord) -> object | None:
    """The plugin's module, or None with the reason in its record; what it prints goes to stderr."""
    start = time.perf_counter()
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return point.load()  # type: ignore[no-any-return]
    except BaseException as error:  # a plugin may even call sys.exit at import
        _fail(record, f"The plugin {quoted(point.name)} could not be imported: {_reason(error)}.")
        return None
    finally:
        record.import_milliseconds = (time.perf_counter() - start) * 1000


def _register(manager: pluggy.PluginManager, registry: Registry, record: PluginRecord, plugin: object) -> None:
    name = record.name if record.origin == BUILT_IN else f"{record.origin}:{record.name}"
    try:
        manager.register(plugin, name=name)
    except Exception as error:
        _fail(record, f"The plugin {quoted(record.name)} could not be registered: {_reason(error)}.")
        if manager.has_plugin(name):
            manager.unregister(name=name)
        return
    try:
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        _fail(record, f"The plugin {quoted(record.name)} implements a hook that does not exist: {_reason(error)}.")
        manager.unregister(name=name)
        return
    for kind in _KINDS:
        for implementation in getattr(manager.hook, kind.hook).get_hookimpls():
            if implementation.plugin is plugin:
                _collect(registry, record, kind, implementation.function)


def _collect(registry: Registry, record: PluginRecord, kind: _Kind, function: Any) -> None:
    """Put what one hook of one plugin returns on its shelf; whatever is wrong goes into the plugin's record."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            values = list(function())
    except (Exception, SystemExit) as error:
        _fail(record, f"The hook {kind.hook} of {quoted(record.name)} failed: {_reason(error)}.")
        return
    shelf = getattr(registry, kind.shelf)
    for value in values:
        wrong = list(faults(value, kind.contract))
        if wrong:
            _fail(
                record,
                f"The hook {kind.hook} of {quoted(record.name)} returned {quoted(type(value).__name__)}, which "
                f"{', and '.join(wrong)}; it has to be all that {kind.contract.__name__} is.",
            )
            continue
        key = getattr(value, kind.key)
        owner = registry.owners.get((kind.shelf, key))
        if owner is not None:
            _fail(
                record,
                f"The {kind.title} {quoted(key)} of {quoted(record.name)} is taken: {quoted(owner)} has one of that "
                "name, and keeps it.",
            )
            continue
        shelf[key] = value
        registry.owners[kind.shelf, key] = record.name
        record.contributions.append(f"{kind.title} {key}")


def _fail(record: PluginRecord, sentence: str) -> None:
    record.state = PluginState.FAILED
    record.errors.append(sentence)


def _reason(error: BaseException) -> str:
    """Type and words of an error on one line."""
    text = safe_text(" ".join(str(error).split()), limit=_REASON_LIMIT).rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
