"""What a session measures, and what it has measured before."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from lora_lab.domain.report import Column, ColumnKind, Finding, Report, Scalars, Table
from lora_lab.errors import LoraLabError
from lora_lab.storage.folders import data_folder

if TYPE_CHECKING:
    from lora_lab.benchmarks.history import Entry, History
    from lora_lab.extension.registry import Registry

_RESULTS: Final = (
    Column("id", "Result", ColumnKind.TEXT),
    Column("benchmark", "Benchmark", ColumnKind.TEXT),
    Column("title", "Of", ColumnKind.TEXT),
    Column("device", "Device", ColumnKind.TEXT),
    Column("lora_lab", "lora-lab", ColumnKind.TEXT, is_wide=True),
    Column("commit", "Commit", ColumnKind.TEXT, is_wide=True),
    Column("path", "Path", ColumnKind.TEXT, is_wide=True),
    Column("error", "Problem", ColumnKind.TEXT, is_wide=True),
)
_SAVED: Final = (Column("saved", "Saved as", ColumnKind.TEXT),)


class Measuring(ABC):
    """Benchmarks, with a history in the user's data folder."""

    seed: int
    device: str

    @property
    @abstractmethod
    def registry(self) -> Registry:
        """What is installed."""

    @property
    def history(self) -> History:
        """Results that were saved."""
        from lora_lab.benchmarks.history import History

        return History(data_folder() / "benchmarks")

    def bench_history(self) -> Report:
        """List the results of earlier benchmarks, the newest first; damaged ones with the reason."""
        entries = self.history.entries()
        rows = tuple(_row(entry) for entry in entries)
        findings = tuple(Finding("unreadable", entry.error, entry.id) for entry in entries if entry.error is not None)
        if not entries:
            findings = (Finding("no_results", "Nothing was measured yet; lora-lab bench swap is a beginning."),)
        return Report(
            "bench history",
            "Results of benchmarks",
            tables=(Table("results", "Results", _RESULTS, rows, key="id"),),
            findings=findings,
        )

    def bench_result(self, result: str = "latest") -> Report:
        """Show a saved result again, as it was.

        Parameters
        ----------
        result : ``latest``, ``previous``, an id or its beginning, or the file of one

        Raises
        ------
        LoraLabError
            there is no such result, or it is damaged.
        """
        return self.history.report(result)

    def bench_compare(self, before: str = "previous", after: str = "latest") -> Report:
        """Compare two results: what got faster or slower by more than chance, and what else differs.

        Parameters
        ----------
        before, after : ``latest``, ``previous``, ids or their beginnings, or files

        Raises
        ------
        LoraLabError
            there is no such result, or they are of two different benchmarks.
        """
        from lora_lab.benchmarks.comparing import compared

        return compared(self.history.find(before), self.history.find(after))

    def _kept(self, report: Report, *, save: bool) -> Report:
        """`report`, saved where that is wished for, and saying under which id."""
        if not save:
            return report
        try:
            entry = self.history.save(report)
        except LoraLabError as error:  # what was measured is not lost with the disk
            return replace(report, findings=(*report.findings, Finding("not_saved", f"Not saved: {error}")))
        saved = Scalars("", "Saved", _SAVED, {"saved": entry.id})
        return replace(report, scalars=(*report.scalars, saved))


def _row(entry: Entry) -> dict[str, object]:
    report = entry.report
    groups = {} if report is None else {group.id: group.values for group in report.scalars}
    environment = groups.get("environment", {})
    return {
        "id": entry.id,
        "benchmark": None if report is None else report.command,
        "title": None if report is None else report.title,
        **{name: environment.get(name) for name in ("device", "lora_lab", "commit")},
        "path": str(entry.path),
        "error": entry.error,
    }
