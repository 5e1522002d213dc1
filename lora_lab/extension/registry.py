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

from lora_lab.errors import PluginError, quoted
from lora_lab.extension import contracts, hooks

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from importlib.metadata import EntryPoint

GROUP: Final = "lora_lab"
SELECTION_VARIABLE: Final = "LORA_LAB_PLUGINS"
BUILT_IN: Final = "built-in"


class PluginState(StrEnum):
    """How loading went."""

    LOADED = "loaded"
    FAILED = "failed"
    DISABLED = "disabled"


@dataclass(slots=True)
class PluginRecord:
    """One plugin: where it comes from, what it adds, what went wrong."""

    name: str
    origin: str  # built-in, or distribution and version
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


def load_registry(builtins: Mapping[str, object], *, load_plugins: bool = True) -> Registry:
    """Register built-ins, then every installed plugin.

    Parameters
    ----------
    builtins : plugin modules under the names of their rooms
    load_plugins : whether plugins from outside are loaded at all
    """
    manager = pluggy.PluginManager(hooks.PROJECT)
    manager.add_hookspecs(hooks)
    registry = Registry()
    for name, plugin in builtins.items():
        _register(manager, registry, PluginRecord(name, BUILT_IN), plugin)
    for point in _selected(load_plugins=load_plugins):
        record = _record(point)
        registry_entry = _imported(point, record)
        if registry_entry is None:
            registry.plugins.append(record)
        else:
            _register(manager, registry, record, registry_entry)
    return registry


def _selected(*, load_plugins: bool) -> Iterable[EntryPoint]:
    """Entry points to load, in the order of their names."""
    if not load_plugins:
        return ()
    points = sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value))
    chosen = os.environ.get(SELECTION_VARIABLE)
    if chosen is None:
        return points
    names = {name.strip() for name in chosen.split(",")}
    return [point for point in points if point.name in names]


def _record(point: EntryPoint) -> PluginRecord:
    dist = point.dist
    origin = f"{dist.name} {dist.version}" if dist is not None else point.value
    return PluginRecord(point.name, origin, version=dist.version if dist is not None else "")


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
    registry.plugins.append(record)
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
    if record.errors:
        record.state = PluginState.FAILED


def _collect(registry: Registry, record: PluginRecord, kind: _Kind, function: Any) -> None:
    """Put what one hook of one plugin returns on its shelf; whatever is wrong goes into the plugin's record."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            values = list(function())
    except Exception as error:
        record.errors.append(f"The hook {kind.hook} of {quoted(record.name)} failed: {_reason(error)}.")
        return
    shelf = getattr(registry, kind.shelf)
    for value in values:
        try:
            key = _checked(value, kind, record)
        except PluginError as error:
            record.errors.append(error.message)
            continue
        owner = registry.owners.get((kind.shelf, key))
        if owner is not None:
            record.errors.append(
                f"The {kind.title} {quoted(key)} of {quoted(record.name)} is taken: {quoted(owner)} has one of that "
                "name, and keeps it."
            )
            continue
        shelf[key] = value
        registry.owners[kind.shelf, key] = record.name
        record.contributions.append(f"{kind.title} {key}")


def _checked(value: Any, kind: _Kind, record: PluginRecord) -> str:
    """Id of a value that has the type its hook promises."""
    missing = [name for name in _members(kind.contract) if not hasattr(value, name)]
    if isinstance(kind.contract, type) and not _is_protocol(kind.contract) and not isinstance(value, kind.contract):
        missing = missing or [kind.contract.__name__]
    if missing:
        raise PluginError(
            f"The hook {kind.hook} of {quoted(record.name)} returned {quoted(type(value).__name__)}, which lacks "
            f"{', '.join(missing)}, expected a {kind.contract.__name__}."
        )
    key = getattr(value, kind.key)
    if not isinstance(key, str) or not key or not key.replace("-", "_").isidentifier():
        raise PluginError(
            f"The hook {kind.hook} of {quoted(record.name)} returned a value called {quoted(key)}, expected a name "
            "of letters, digits, - and _."
        )
    return key


def _members(contract: Any) -> Iterator[str]:
    """Public names that a protocol declares."""
    if _is_protocol(contract):
        yield from sorted(name for name in vars(contract) if not name.startswith("_"))


def _is_protocol(contract: Any) -> bool:
    return bool(getattr(contract, "_is_protocol", False))


def _fail(record: PluginRecord, sentence: str) -> None:
    record.state = PluginState.FAILED
    record.errors.append(sentence)


def _reason(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0].rstrip('.')}" if text and text[0] else type(error).__name__
