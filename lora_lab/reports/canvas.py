"""Drawing without a window: matplotlib's objects, its settings for a paper, and files that are the same every time."""

from __future__ import annotations

import io
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from lora_lab.errors import LoraLabError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.figure import Figure

# Lines and letters are drawn in this colour, which nothing else has; on a page it becomes that of the text around.
INK: Final = "#010203"
FORMATS: Final = {".png": "png", ".svg": "svg", ".pdf": "pdf"}
_SETTINGS: Final[Any] = {
    "svg.hashsalt": "lora-lab",
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "font.size": 9.0,
    "font.family": "sans-serif",
    "axes.titlesize": 9.0,
    "axes.labelsize": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "text.parse_math": False,  # a name with two dollar signs is a name
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.titlecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
}


def require_matplotlib() -> None:
    """Raise LoraLabError with what to install where matplotlib is missing."""
    try:
        import matplotlib as mpl  # noqa: F401
    except ImportError:
        raise LoraLabError(
            "matplotlib, which draws figures, is not installed.", hint="pip install 'lora-lab[report]'"
        ) from None


@contextmanager
def drawing() -> Iterator[None]:
    """Apply the settings of every figure inside the block."""
    import matplotlib as mpl

    with mpl.rc_context(_SETTINGS):
        yield


def new_figure(width: float, height: float) -> Figure:
    """Make an empty figure, its size in inches; no window and no global state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))


def as_file(figure: Figure, suffix: str) -> bytes:
    """Write a figure as PNG, SVG or PDF on white; the same figure gives the same bytes."""
    content = io.BytesIO()
    kind = FORMATS[suffix]
    metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {"Software": None}}[kind]
    with drawing():
        figure.savefig(content, format=kind, dpi=200, metadata=metadata, facecolor="white")
    return content.getvalue()


def as_svg(figure: Figure, label: str) -> str:
    """Write a figure as an SVG element to stand in a page: transparent, its ink the page's own colour.

    Parameters
    ----------
    label : what someone is told who cannot see it; escaped already
    """
    content = io.StringIO()
    with drawing():
        figure.savefig(content, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    text = content.getvalue()
    element = text[text.index("<svg") :].replace(INK, "currentColor")
    head, _, rest = element.partition(">")
    return f'{head} role="img" aria-label="{label}">{rest}'
