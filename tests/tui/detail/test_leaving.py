"""A plot that is still being mounted when its screen is left."""

from __future__ import annotations

from textual.app import App, ComposeResult

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
