"""What is shown instead of a screen that has no room."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from textual.content import Content
from textual.widget import Widget

if TYPE_CHECKING:
    from textual.app import RenderResult
    from textual.geometry import Size

LEAST_WIDTH: Final = 60
LEAST_HEIGHT: Final = 16


def is_too_small(size: Size) -> bool:
    """Whether a terminal of `size` is below 60 × 16."""
    return size.width < LEAST_WIDTH or size.height < LEAST_HEIGHT


class TooSmall(Widget):
    """Covers the screen, and says which size it has and which it needs.

    The screen underneath keeps its focus and its cursor, so that nothing is lost by a resize and back.
    """

    DEFAULT_CSS = """
    TooSmall {
        display: none;
        overlay: screen;
        position: absolute;
        offset: 0 0;
        width: 100vw;
        height: 100vh;
        background: $background;
        content-align: center middle;
        text-align: center;
    }
    """

    def fit(self, size: Size) -> None:
        """Show or hide for a terminal of `size`."""
        self.display = is_too_small(size)
        self.refresh()

    def render(self) -> RenderResult:
        """Name the size there is and the size needed."""
        size = self.app.size
        needed = f"{LEAST_WIDTH} × {LEAST_HEIGHT}"
        return Content(f"Terminal size too small\n{size.width} × {size.height}\nneeded {needed}\nctrl+q quits")
