"""What is said where a device is asked for and of no use."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lora_lab.domain.report import Finding
from lora_lab.errors import quoted

if TYPE_CHECKING:
    from lora_lab.domain.report import Report


def told_of_device(report: Report, device: str, what: str) -> Report:
    """`report`, with a finding where another device than the processor was asked for.

    Parameters
    ----------
    what : computes on the processor whatever there is: its sums are float64, and their bits are those of the processor
    """
    if device in ("auto", "cpu"):
        return report
    said = f"{what} computes on the processor, in float64; the device {quoted(device)} is of no use to it."
    return replace(report, findings=(*report.findings, Finding("on_processor", said)))
