"""The built-in exporters, as a plugin."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab.extension.hooks import hookimpl

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_lab.extension.contracts import Exporter


@hookimpl
def lora_lab_exporters() -> Sequence[Exporter]:
    """JSON, CSV and Markdown."""
    from lora_lab.reports.exporters import CsvExporter, JsonExporter
    from lora_lab.reports.markdown import MarkdownExporter

    return (JsonExporter(), CsvExporter(), MarkdownExporter())
