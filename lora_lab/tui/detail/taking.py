"""What ``y`` copies and ``x`` exports from the screen of one adapter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_lab.safetext import safe_text
from lora_lab.tui.export import Copied, ExportDocument, as_tsv
from lora_lab.tui.plots.series import cumulative_shares

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_lab.domain.adapter import Adapter
    from lora_lab.tui.plots.drawings import Spectrum

_COLUMNS = ("module", "adapter", "k", "singular_value", "cumulative_energy")


def spectrum_rows(module: str, spectra: Sequence[Spectrum], index: int | None = None) -> list[list[Any]]:
    """One row for each singular value of each spectrum, or only those at k = `index`; full precision."""
    rows: list[list[Any]] = []
    for spectrum in spectra:
        values = spectrum.values or ()
        shares: Sequence[float | None] = cumulative_shares(values) or [None] * len(values)
        rows.extend(
            [module, spectrum.name, k, value, share]
            for k, (value, share) in enumerate(zip(values, shares, strict=True), start=1)
            if index in (None, k)
        )
    return rows


def copied_value(module: str, spectra: Sequence[Spectrum], index: int) -> Copied | None:
    """The values under the plot's cursor."""
    rows = spectrum_rows(module, spectra, index)
    return Copied(f"k={index} of {safe_text(module, limit=40)}", as_tsv(_COLUMNS, rows)) if rows else None


def copied_row(module: str, row: Mapping[str, Any] | None) -> Copied | None:
    """Everything about one module."""
    if row is None:
        return None
    return Copied(f"the row of {safe_text(module, limit=40)}", as_tsv(list(row), [list(row.values())]))


def spectrum_document(name: str, module: str, spectra: Sequence[Spectrum]) -> ExportDocument:
    """The curves on screen."""
    return ExportDocument(f"{name}-{module}", _COLUMNS, spectrum_rows(module, spectra))


def configuration_document(adapter: Adapter) -> ExportDocument:
    """The configuration as keys and values."""
    return ExportDocument(
        f"{adapter.name}-config", ("key", "value"), [list(item) for item in adapter.configuration.items()]
    )
