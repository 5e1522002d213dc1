"""The hooks: each returns a sequence of typed values, and every value keeps its owner."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_lab.extension.contracts import (
        AdapterFormat,
        Analysis,
        CommandSpec,
        Exporter,
        MergeMethod,
        SwapStrategy,
    )

PROJECT = "lora_lab"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def lora_lab_adapter_formats() -> Sequence[AdapterFormat]:  # type: ignore[empty-body]
    """File formats that hold adapters."""


@hookspec
def lora_lab_analyses() -> Sequence[Analysis]:  # type: ignore[empty-body]
    """Analyses; each is reachable by ``analyze``, by ``--json`` and as a tab."""


@hookspec
def lora_lab_merge_methods() -> Sequence[MergeMethod]:  # type: ignore[empty-body]
    """Ways to combine adapters."""


@hookspec
def lora_lab_swap_strategies() -> Sequence[SwapStrategy]:  # type: ignore[empty-body]
    """Ways to switch a model from one adapter to another."""


@hookspec
def lora_lab_exporters() -> Sequence[Exporter]:  # type: ignore[empty-body]
    """File kinds a Report can be written as."""


@hookspec
def lora_lab_commands() -> Sequence[CommandSpec]:  # type: ignore[empty-body]
    """Commands of the command line."""
