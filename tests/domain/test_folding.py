"""Many findings of one kind are told by the first of them and their number."""

from __future__ import annotations

from lora_lab.domain.folding import folded
from lora_lab.domain.report import Finding


def told(findings: list[Finding]) -> list[tuple[str, str | None, int]]:
    return [(finding.code, finding.module, more) for finding, more in folded(findings)]


def test_few_are_told_one_by_one() -> None:
    """One more than three is no reason to fold."""
    findings = [Finding("zero", "…", str(place)) for place in range(4)]
    assert told(findings) == [("zero", str(place), 0) for place in range(4)]


def test_kinds_are_counted_apart_and_the_order_stays() -> None:
    """Ten of one kind and one of another between them; what is about the whole is always told."""
    of_shape = [Finding("shape", "…", str(place)) for place in range(10)]
    whole = [Finding("bases", f"{place}") for place in range(9)]
    findings = [of_shape[0], Finding("nan", "…", "x"), *of_shape[1:], *whole]
    expected = [("shape", "0", 0), ("nan", "x", 0), ("shape", "1", 0), ("shape", "2", 7)]
    assert told(findings) == [*expected, *[("bases", None, 0)] * 9]
