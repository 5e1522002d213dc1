"""What is said about a benchmark: how far it is, what came of it, and how it compares with an earlier one."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from textual.content import Content

from lora_lab.safetext import safe_text
from lora_lab.tui import text
from lora_lab.tui.compare.words import finding_lines, refusal, scalar_parts
from lora_lab.tui.detail.spectrum_view import flowed

if TYPE_CHECKING:
    from lora_lab.domain.report import Report
    from lora_lab.jobs import Job
    from lora_lab.tui.bench.watching import Watched

_DIM: Final = "$foreground 65%"
_BAR_WIDTH: Final = 24
_TRUST: Final = ("noisy_machine", "wrong_result", "few_runs")
_TONES: Final = {"faster": "$text-success", "slower": "$text-error", "same": _DIM}


def said_of(watched: Watched, eta_seconds: float | None, width: int) -> Content:
    """Everything about the one that runs, or is over."""
    job, report = watched.job, watched.report
    if report is not None:
        # There is room for some lines: whether the figures can be trusted comes before what was left out of them.
        findings = sorted(report.findings, key=lambda finding: finding.code not in _TRUST)
        return Content("\n").join([*finding_lines(findings), flowed(scalar_parts(report), width)])
    if job is None:
        return Content.styled("ctrl+g begins; h shows an earlier result.", _DIM)
    if job.state == "failed":
        return refusal(job.error or "", job.hint or "")
    if job.state == "cancelled":
        return Content("Cancelled; nothing was kept.")
    return Content("\n").join([progress(job, eta_seconds), *finding_lines(watched.live.findings())])


def progress(job: Job, eta_seconds: float | None) -> Content:
    """How far it is, how long it will take, and what is done now."""
    if job.state == "queued" or not job.total:
        waits = "waits for the job before it …" if job.state == "queued" else "begins …"
        return Content.styled(waits, _DIM)
    share = job.done / job.total
    parts = [f"{job.done} of {job.total} runs"]
    parts += [f"{text.duration(eta_seconds)} left"] if eta_seconds is not None else []
    bar = f"{text.bar(share, _BAR_WIDTH):<{_BAR_WIDTH}}"
    return Content.assemble(
        f"{bar} {100 * job.done // job.total} %  {' · '.join(parts)}  ", Content.styled(safe_text(job.what), _DIM)
    )


def compared_with(comparison: Report, before: str) -> Content:
    """How many rows got faster or slower than in the earlier result, by more than chance."""
    verdicts = Counter(str(row["verdict"]) for row in comparison.table("rows").rows)
    counts = [
        Content.styled(f"{verdicts[name]} {name}", f"bold {_TONES.get(name, _DIM)}")
        for name in sorted(verdicts, key=lambda name: (name not in _TONES, name))
    ]
    head = Content.assemble(
        Content.styled("Against ", _DIM), safe_text(before), Content.styled(": ", _DIM), Content(", ").join(counts)
    )
    return Content("\n").join([head, *finding_lines(comparison.findings)])
