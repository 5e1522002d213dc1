"""Lists as Reports: what a folder holds, what is installed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from lora_lab.domain.library import EntryKind
from lora_lab.domain.report import Column, ColumnKind, Finding, InputRecord, Report, Table

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from lora_lab.domain.library import LibraryEntry
    from lora_lab.domain.parameters import Parameter
    from lora_lab.extension.registry import Registry

_ADAPTERS: Final = (
    Column("name", "Adapter", ColumnKind.TEXT),
    Column("path", "Path", ColumnKind.TEXT, is_wide=True),
    Column("format", "Format", ColumnKind.TEXT, is_wide=True),
    Column("base_model", "Base", ColumnKind.TEXT),
    Column("rank_min", "r", ColumnKind.INTEGER),
    Column("rank_max", "r max", ColumnKind.INTEGER),
    Column("alpha", "α"),
    Column("modules", "Modules", ColumnKind.INTEGER),
    Column("parameters", "Parameters", ColumnKind.INTEGER),
    Column("size_bytes", "Size", ColumnKind.BYTES, unit="bytes"),
    Column("dtype", "dtype", ColumnKind.TEXT),
    Column("error", "Problem", ColumnKind.TEXT, is_wide=True),
)
_BASES: Final = (
    Column("name", "Base", ColumnKind.TEXT),
    Column("path", "Path", ColumnKind.TEXT, is_wide=True),
    Column("parameters", "Parameters", ColumnKind.INTEGER),
    Column("size_bytes", "Size", ColumnKind.BYTES, unit="bytes"),
    Column("dtype", "dtype", ColumnKind.TEXT),
    Column("shards", "Shards", ColumnKind.INTEGER),
    Column("error", "Problem", ColumnKind.TEXT, is_wide=True),
)
_PLUGINS: Final = (
    Column("name", "Plugin", ColumnKind.TEXT),
    Column("origin", "From", ColumnKind.TEXT),
    Column("state", "State", ColumnKind.TEXT),
    Column("contributions", "Adds", ColumnKind.LIST),
    Column("import_milliseconds", "Import", unit="ms", is_wide=True),
    Column("errors", "Problem", ColumnKind.LIST),
)
_ANALYSES: Final = (
    Column("id", "Analysis", ColumnKind.TEXT),
    Column("title", "Title", ColumnKind.TEXT, is_wide=True),
    Column("summary", "What it says", ColumnKind.TEXT),
    Column("base", "Base model", ColumnKind.TEXT),
    Column("parameters", "Parameters", ColumnKind.LIST, is_wide=True),
    Column("reference", "Source", ColumnKind.TEXT, is_wide=True),
    Column("plugin", "Plugin", ColumnKind.TEXT),
)
_METHODS: Final = (
    Column("id", "Method", ColumnKind.TEXT),
    Column("title", "Title", ColumnKind.TEXT, is_wide=True),
    Column("summary", "What it does", ColumnKind.TEXT),
    Column("is_low_rank", "Low rank", ColumnKind.VALUE, is_wide=True, formula="whether the result has the ranks' sum"),
    Column("parameters", "Parameters", ColumnKind.LIST, is_wide=True),
    Column("reference", "Source", ColumnKind.TEXT, is_wide=True),
    Column("plugin", "Plugin", ColumnKind.TEXT),
)
_STRATEGIES: Final = (
    Column("id", "Strategy", ColumnKind.TEXT),
    Column("title", "Title", ColumnKind.TEXT, is_wide=True),
    Column("summary", "What it does", ColumnKind.TEXT),
    Column("is_exact", "Exact", ColumnKind.VALUE, formula="whether it promises the bits of a merge into the base"),
    Column("plugin", "Plugin", ColumnKind.TEXT),
)


def ls_report(locator: str, entries: Sequence[LibraryEntry]) -> Report:
    """What was found, adapters and bases apart, broken ones among them with the reason."""
    adapters = [entry for entry in entries if entry.kind is EntryKind.ADAPTER]
    bases = [entry for entry in entries if entry.kind is EntryKind.BASE]
    findings = tuple(Finding("unreadable", entry.error, entry.name) for entry in entries if entry.error is not None)
    return Report(
        command="ls",
        title=locator,
        tables=(
            Table("adapters", "Adapters", _ADAPTERS, tuple(_row(entry, _ADAPTERS) for entry in adapters), key="name"),
            Table("bases", "Bases", _BASES, tuple(_row(entry, _BASES) for entry in bases), key="name"),
        ),
        findings=findings,
        inputs=(InputRecord(locator, locator),),
    )


def plugins_report(registry: Registry) -> Report:
    """Every plugin, with what went wrong."""
    rows = tuple(
        {
            "name": record.name,
            "origin": record.origin,
            "version": record.version,
            "state": record.state.value,
            "contributions": list(record.contributions),
            "import_milliseconds": record.import_milliseconds,
            "errors": list(record.errors),
        }
        for record in registry.plugins
    )
    findings = tuple(Finding("plugin_failed", error) for record in registry.plugins for error in record.errors)
    return Report(
        "plugins", "Plugins", tables=(Table("plugins", "Plugins", _PLUGINS, rows, key="name"),), findings=findings
    )


def analyses_report(registry: Registry) -> Report:
    """Every analysis, with its parameters and who brought it."""
    rows = tuple(
        {
            "id": analysis.id,
            "title": analysis.title,
            "summary": analysis.summary,
            "base": analysis.base.value,
            "parameters": [_parameter(parameter) for parameter in analysis.parameters],
            "reference": analysis.reference,
            "plugin": registry.owner_of("analyses", analysis.id),
        }
        for analysis in registry.analyses.values()
    )
    return Report("analyses", "Analyses", tables=(Table("analyses", "Analyses", _ANALYSES, rows, key="id"),))


def methods_report(registry: Registry) -> Report:
    """Every method of combining, with its parameters and who brought it."""
    rows = tuple(
        {
            "id": method.id,
            "title": method.title,
            "summary": method.summary,
            "is_low_rank": method.is_low_rank,
            "parameters": [_parameter(parameter) for parameter in method.parameters],
            "reference": method.reference,
            "plugin": registry.owner_of("methods", method.id),
        }
        for method in registry.methods.values()
    )
    return Report("methods", "Methods", tables=(Table("methods", "Methods", _METHODS, rows, key="id"),))


def strategies_report(registry: Registry) -> Report:
    """Every strategy of swapping, and who brought it."""
    rows = tuple(
        {
            "id": strategy.id,
            "title": strategy.title,
            "summary": strategy.summary,
            "is_exact": strategy.is_exact,
            "plugin": registry.owner_of("strategies", strategy.id),
        }
        for strategy in registry.strategies.values()
    )
    return Report("strategies", "Strategies", tables=(Table("strategies", "Strategies", _STRATEGIES, rows, key="id"),))


def is_checkpoint(path: Path) -> bool:
    """Whether a folder or file is a full model rather than an adapter, from names alone."""
    if path.is_dir():
        return is_checkpoint_folder({found.name for found in path.iterdir() if found.exists()})
    return is_checkpoint_file(path.name)


def is_checkpoint_folder(names: Collection[str]) -> bool:
    """Whether a folder with files of these names is a full model."""
    if "adapter_config.json" in names or "adapter_model.safetensors" in names:
        return False
    return any(is_checkpoint_file(name) for name in names)


def is_checkpoint_file(name: str) -> bool:
    """Whether a file of this name is a full model, or its index."""
    return name == "model.safetensors" or name.endswith(".safetensors.index.json")


def _parameter(parameter: Parameter) -> str:
    values = "|".join(parameter.choices) or ("" if parameter.default is None else str(parameter.default))
    return f"{parameter.id}={values}" if values else parameter.id


def _row(entry: LibraryEntry, columns: Sequence[Column]) -> dict[str, Any]:
    return {column.id: getattr(entry, column.id) for column in columns}
