"""How much of the machine others took while something was measured."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lora_lab.analyses.summaries import summarised
from lora_lab.domain.report import Finding

_STAT: Final = Path("/proc/stat")
# Share of all processors' time beyond which a figure is not to be trusted, and of a contestant's own spread.
_MOST_OTHERS: Final = 0.1
_MOST_STOLEN: Final = 0.02
MOST_NOISE: Final = 0.15
_SHORTEST_SECONDS: Final = 0.2  # the kernel counts in hundredths


@dataclass(frozen=True, slots=True)
class Disturbance:
    """Shares of the processors' time between two looks, None where the system does not say.

    others : what other processes took
    stolen : what a hypervisor gave to other machines
    """

    others: float | None
    stolen: float | None


class Watch:
    """Looks at the processors' counters when it is made, and again when asked.

    Source: proc(5), ``/proc/stat``: user, nice, system, idle, iowait, irq, softirq, steal, in ticks.
    """

    def __init__(self) -> None:
        self._ticks = _ticks()
        self._own = _own_seconds()
        self._started = time.monotonic()

    def disturbance(self) -> Disturbance:
        """What happened since."""
        now = _ticks()
        if self._ticks is None or now is None or time.monotonic() - self._started < _SHORTEST_SECONDS:
            return Disturbance(None, None)
        spent = [after - before for before, after in zip(self._ticks, now, strict=True)]
        whole = sum(spent)
        if whole <= 0:
            return Disturbance(None, None)
        user, nice, system, _, _, irq, softirq, steal = spent
        own = (_own_seconds() - self._own) * os.sysconf("SC_CLK_TCK")
        others = user + nice + system + irq + softirq - own
        return Disturbance(max(0.0, others / whole), steal / whole)


def findings_of(disturbance: Disturbance, noise: dict[str, float]) -> tuple[Finding, ...]:
    """Warn where the figures are not to be trusted.

    Parameters
    ----------
    noise : quartile range over median of every contestant
    """
    found = []
    if disturbance.others is not None and disturbance.others > _MOST_OTHERS:
        found.append(f"other processes took {disturbance.others:.0%} of the processors meanwhile")
    if disturbance.stolen is not None and disturbance.stolen > _MOST_STOLEN:
        found.append(f"the hypervisor took {disturbance.stolen:.0%} of the processors away")
    loud = [name for name, share in noise.items() if share > MOST_NOISE]
    if loud:
        worst = max(loud, key=noise.__getitem__)
        found.append(f"half of the runs of {summarised(loud)} spread over up to {noise[worst]:.0%} of their median")
    if not found:
        return ()
    sentence = "; ".join(found)
    return (
        Finding(
            "noisy_machine",
            f"The machine was noisy: {sentence}. Ratios taken side by side still say something; run it again when "
            "nothing else runs, or with more --repeats.",
        ),
    )


def _ticks() -> list[int] | None:
    try:
        first = _STAT.read_text().splitlines()[0].split()
        return [int(count) for count in first[1:9]] if len(first) >= 9 else None
    except (OSError, ValueError, IndexError):
        return None


def _own_seconds() -> float:
    own = os.times()
    return own.user + own.system + own.children_user + own.children_system
