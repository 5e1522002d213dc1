"""What the library keeps of a spectrum: a few numbers, not the singular values of every module."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from lora_lab.domain.modules import layer_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from lora_lab.domain.report import Report

_MOST_TOP_MODULES: Final = 5


@dataclass(frozen=True, slots=True)
class Digest:
    """Taken from the report as it stands there, so that the digits are the command line's.

    ``layers`` alone is computed here, and only drawn: ‖ΔW‖_F of a layer is √Σ‖ΔW‖_F² over its modules.
    """

    totals: Mapping[str, Any]
    layers: Mapping[int, float]
    top: tuple[tuple[str, float], ...]  # modules of the largest ‖ΔW‖_F, and that
    messages: tuple[str, ...]  # of the findings


def digest(report: Report) -> Digest:
    """Keep what the table and the side panel show of a spectrum's report."""
    rows = report.table("modules").rows
    norms = [(str(row["module"]), row["frobenius_norm"]) for row in rows if row["frobenius_norm"] is not None]
    totals = next((group.values for group in report.scalars if group.id == "totals"), {})
    return Digest(
        totals=dict(totals),
        layers=layer_norms(norms),
        top=tuple(sorted(norms, key=lambda pair: -pair[1])[:_MOST_TOP_MODULES]),
        messages=_messages(report),
    )


def layer_norms(norms: Iterable[tuple[str, float]]) -> dict[int, float]:
    """√Σ‖ΔW‖_F² of each layer, in the order of the layers."""
    grouped: dict[int, list[float]] = {}
    for module, norm in norms:
        layer = layer_of(module)
        if layer is not None:
            grouped.setdefault(layer, []).append(norm)
    return {layer: math.hypot(*grouped[layer]) for layer in sorted(grouped)}


def _messages(report: Report) -> tuple[str, ...]:
    return tuple(dict.fromkeys(finding.message for finding in report.findings))


def all_messages(sources: Sequence[Digest | Report | None]) -> list[str]:
    """Sentences of several findings, each once."""
    found: dict[str, None] = {}
    for source in sources:
        if source is not None:
            found.update(dict.fromkeys(source.messages if isinstance(source, Digest) else _messages(source)))
    return list(found)
