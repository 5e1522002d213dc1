"""Widgets that are still being mounted when their screen is left."""

from __future__ import annotations

from textual.app import App, ComposeResult
from tui.detail.made import EdgeAnalysis

from lora_lab.tui.detail.analysis_view import AnalysisView
from lora_lab.tui.plots.spectrum import SpectrumPlot


class Gone(SpectrumPlot):
    """A plot whose parts are gone when it learns that it is mounted."""

    def compose(self) -> ComposeResult:
        yield from ()


class Holder(App[None]):
    def compose(self) -> ComposeResult:
        yield Gone()


async def test_a_plot_without_parts_draws_nothing() -> None:
    """It neither draws nor fails."""
    async with Holder().run_test() as pilot:
        await pilot.pause()
        assert pilot.app.query_one(Gone).is_mounted


async def test_a_plot_that_is_removed_while_it_is_mounted_draws_nothing() -> None:
    """Nor does the base's own handler, which takes its legend to be there."""
    async with App[None]().run_test() as pilot:
        plot = SpectrumPlot()
        pilot.app.mount(plot)
        plot.remove()
        await pilot.pause()
        assert not plot.is_attached


class Bare(AnalysisView):
    """A view whose screen is left while its parts are still to be mounted."""

    def compose(self) -> ComposeResult:
        yield from ()


class Holding(App[None]):
    def compose(self) -> ComposeResult:
        yield Bare(EdgeAnalysis(), "/library/sql", base=None, base_model=None)


async def test_a_view_without_parts_can_be_spoken_to() -> None:
    """A module is chosen beside it, or it is told to begin again: it has no rows, and does not fail."""
    async with Holding().run_test() as pilot:
        view = pilot.app.query_one(Bare)
        view.select("layers.0.q_proj")
        view.reset()
        assert view.table.row is None
