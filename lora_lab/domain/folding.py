"""Findings for a person: the first of a kind, and how many more there are."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lora_lab.domain.report import Finding

_MOST: Final = 3


def folded(findings: Sequence[Finding]) -> Iterator[tuple[Finding, int]]:
    """Yield the first three findings of each code about single modules, the last of them with how many are left out.

    A finding about the whole is never left out.

    Examples
    --------
    >>> from lora_lab.domain.report import Finding
    >>> many = [Finding("shape_mismatch", f"m{place} …", f"m{place}") for place in range(30)]
    >>> [(finding.module, more) for finding, more in folded(many)]
    [('m0', 0), ('m1', 0), ('m2', 27)]
    """
    counts = Counter(finding.code for finding in findings if finding.module is not None)
    seen: Counter[str] = Counter()
    for finding in findings:
        if finding.module is None:
            yield finding, 0
            continue
        seen[finding.code] += 1
        if counts[finding.code] <= _MOST + 1 or seen[finding.code] < _MOST:
            yield finding, 0
        elif seen[finding.code] == _MOST:
            yield finding, counts[finding.code] - _MOST
