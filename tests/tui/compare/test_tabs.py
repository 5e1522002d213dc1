"""Differences and interference, the screens as text, and every key."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from tui.compare.pairs import A, B, diff_report, module_names, open_pair, report_of, row_of, rows_of

from lora_lab.domain.report import Column, ColumnKind, Finding, Report, Table
from lora_lab.tui.compare.report_view import ReportView
from lora_lab.tui.compare.screen import CompareScreen

GOLDEN = Path(__file__).parent / "golden"
LEAVES = {"ctrl+q", "q", "1", "2", "3", "7", "b"}


def interference_report() -> Report:
    """Pairs, and modules."""
    pairs = (Column("a", "A", ColumnKind.TEXT), Column("b", "B", ColumnKind.TEXT), Column("cosine", "cos ΔW"))
    modules = (Column("module", "Module", ColumnKind.TEXT), Column("energy_ratio", "Energy ratio"))
    return Report(
        "interference",
        "Interference",
        (
            Table("pairs", "Pairs", pairs, ({"a": "sql-expert", "b": "chat-de", "cosine": 0.0625},), key="a"),
            Table("modules", "Modules", modules, ({"module": module_names(1)[0], "energy_ratio": 1.0625},)),
        ),
    )


async def test_a_tab_runs_its_analysis_when_it_is_looked_at(size: tuple[int, int]) -> None:
    """Not before, and once; m goes to the next table; the filter holds for modules."""
    async with open_pair(size) as opened:
        await opened.rows(report_of(rows_of(module_names())))
        assert opened.waiting("diff") == []
        await opened.press("greater_than_sign")
        (job,) = opened.waiting("diff")
        assert job.request.arguments == {"id": "diff", "locators": [A, B]}
        opened.jobs.finish(job, diff_report(module_names()))
        await opened.pilot.pause()
        view = opened.screen.query(ReportView)[0]
        assert view.table.keys == tuple(module_names())
        assert view.table.has_focus
        assert "The two have different ranks." in opened.text()
        assert "Identical no" in opened.text()
        await opened.press("slash", "L", "1", "0", "enter")
        assert view.table.keys == tuple(module_names()[20:22])
        assert "Modules (2 of 24)" in opened.text()
        await opened.press("m")
        assert view.table.keys == ("r", "use_dora")
        assert "8" in opened.text()
        assert opened.screen.export_document().columns == ["key", "a", "b"]  # type: ignore[union-attr]
        await opened.press("greater_than_sign")
        (other,) = opened.waiting("interference")
        opened.jobs.finish(other, interference_report())
        await opened.pilot.pause()
        assert "0.06250" in opened.text()
        await opened.press("less_than_sign")
        assert opened.waiting("diff") == []


async def test_the_differences_alone_or_what_one_lacks(size: tuple[int, int]) -> None:
    """d goes from all modules to those that differ, to those that one of the two has, and back; the filter holds."""
    modules = module_names(5)[:5]
    report = diff_report(modules)
    table = report.tables[0]
    same = {"relative_difference": 0.0, "difference_norm": 0.0, "rank_b": 8}
    rows = (*table.rows[:2], {**table.rows[2], **same}, {**table.rows[3], **same, "scaling_a": 2.0, "scaling_b": 1.0})
    rows = (*rows, {**table.rows[4], "relative_difference": None, "difference_norm": None})
    columns = (*table.columns, Column("difference_norm", "‖ΔW_A − ΔW_B‖_F"), Column("scaling_a", "Scaling A"))
    report = replace(report, tables=(replace(table, rows=rows, columns=columns), *report.tables[1:]))
    async with open_pair(size) as opened:
        await opened.rows(report_of(rows_of(modules)))
        await opened.press("greater_than_sign")
        opened.jobs.finish(opened.waiting("diff")[0], report)
        await opened.pilot.pause()
        view = opened.screen.query(ReportView)[0]
        assert view.table.keys == tuple(modules)
        await opened.press("d")
        assert view.table.keys == (modules[0], modules[1], modules[3], modules[4])
        assert "Modules (4 of 5, differing)" in opened.text()
        await opened.press("slash", *"q_proj", "enter")
        assert set(view.table.keys) == {
            name for name in (modules[0], modules[1], modules[3], modules[4]) if "q_" in name
        }
        await opened.press("escape", "d")
        assert view.table.keys == (modules[0],)
        assert "Modules (1 of 5, in one only)" in opened.text()
        await opened.press("d")
        assert view.table.keys == tuple(modules)
        await opened.press("m", "d")
        assert view.table.keys == ("r", "use_dora")


async def test_a_row_leads_to_its_grid() -> None:
    """Enter on a module of a table shows its φ(i,j)."""
    async with open_pair() as opened:
        await opened.rows(report_of(rows_of(module_names())))
        await opened.press("greater_than_sign")
        opened.jobs.finish(opened.waiting("diff")[0], diff_report(module_names()))
        await opened.pilot.pause()
        await opened.press("j", "j", "j", "enter")
        assert opened.screen.tab == "tab-overlap"
        assert opened.screen.module == module_names()[3]


async def test_a_tab_that_fails() -> None:
    """The other tabs go on; a swap and r run it again."""
    async with open_pair() as opened:
        await opened.press("greater_than_sign")
        opened.jobs.fail(opened.waiting("diff")[0], "There is no analysis 'diff'.", "lora-lab analyses lists them.")
        await opened.pilot.pause()
        assert "There is no analysis 'diff'." in opened.words()
        assert "→ lora-lab analyses lists them." in opened.words()
        await opened.press("w")
        assert opened.waiting("diff")[0].request.arguments["locators"] == [B, A]
        opened.jobs.cancel(opened.waiting("diff")[0])
        await opened.pilot.pause()
        assert "Cancelled. → r runs it again." in opened.words()
        await opened.press("r")
        assert len(opened.waiting("diff")) == 1


async def test_a_wide_report_scrolls_and_an_empty_one_says_so() -> None:
    """Neither is a reason to fall over."""
    async with open_pair() as opened:
        await opened.press("greater_than_sign")
        opened.jobs.finish(opened.waiting("diff")[0], Report("diff", "Difference", verdict=True))
        await opened.pilot.pause()
        assert "There is nothing to list." in opened.text()


async def test_golden(size: tuple[int, int]) -> None:
    """What a person sees; LORA_LAB_GOLDEN=write writes the files anew."""
    modules = module_names()
    rows = rows_of(modules)
    rows[3] = row_of(modules[3], 3, rank_a=0)
    findings = [Finding("magnitudes", "DoRA magnitudes are outside ΔW.")]
    seen: dict[str, str] = {}
    async with open_pair(size) as opened:
        seen["computing"] = opened.text()
        await opened.rows(report_of(rows, findings=findings, only_in_a=["lm_head"]))
        await opened.grid()
        await opened.press("enter", "down", "right", "right")
        seen["overlap"] = opened.text()
        await opened.press("t")
        seen["numbers"] = opened.text()
        await opened.press("t", "greater_than_sign")
        opened.jobs.finish(opened.waiting("diff")[0], diff_report(modules))
        await opened.pilot.pause()
        seen["diff"] = opened.text()
        await opened.press("less_than_sign", "less_than_sign")
        seen["facts"] = opened.text()
        await opened.press("greater_than_sign", "G")
        await opened.pilot.pause()
        seen["undefined"] = opened.text()
    for name, shown in seen.items():
        assert len(shown.splitlines()) == size[1]
        path = GOLDEN / f"{name}-{size[0]}x{size[1]}.txt"
        if os.environ.get("LORA_LAB_GOLDEN") == "write":
            path.parent.mkdir(exist_ok=True)
            path.write_text(shown + "\n", encoding="utf-8")
        assert shown + "\n" == path.read_text(encoding="utf-8"), name


async def test_every_key(size: tuple[int, int]) -> None:
    """Each key that the help lists can be pressed: all on the list, then those of the colours and of the numbers."""
    async with open_pair(size) as opened:
        screen = opened.screen
        await opened.rows(report_of(rows_of(module_names())))
        await opened.grid()
        for place in ("heatmap", "numbers", "list"):
            screen.overlap.turn_table(is_table=place == "numbers")
            if place != "list":
                await opened.press("enter")
            focused = opened.app.focused
            assert focused is {"list": screen.list_view, "numbers": screen.overlap.numbers}.get(
                place, screen.overlap.heatmap
            )
            active = screen.active_bindings.items()
            keys = [key for key, one in active if key not in LEAVES and (place == "list" or one.node is focused)]
            assert len(keys) > (30 if place == "list" else 9)
            for key in keys:
                await opened.pilot.press(key)
                for _ in range(3):
                    if opened.app.screen is not screen:
                        await opened.pilot.press("escape")
                assert opened.app.screen is screen, key
            screen.list_view.focus()
            await opened.pilot.pause()
        assert isinstance(opened.app.screen, CompareScreen)
