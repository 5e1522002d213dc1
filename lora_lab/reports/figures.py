"""The figures of section 7 of the LoRA paper, drawn from Reports and from nothing else."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from lora_lab.domain.modules import layer_of, projection_of
from lora_lab.errors import NumericalError, quoted
from lora_lab.reports.canvas import INK, new_figure
from lora_lab.safetext import safe_text

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lora_lab.domain.report import Report

_COLUMNS: Final = 4
_CELL: Final = 2.1  # inches
_MAP: Final = "viridis"
_PAPER: Final = "arXiv 2106.09685"
# Which modules a person looks at first, by the names that models give them.
_FIRST: Final = (("q_proj", "query", "q", "c_attn", "query_key_value"), ("v_proj", "value", "v", "c_proj", "dense"))


@dataclass(frozen=True, slots=True)
class Drawn:
    """A figure with what stands below it."""

    id: str
    title: str
    caption: str
    figure: Figure


def leading_modules(modules: Sequence[str]) -> list[str]:
    """The two modules that the paper shows, W_q and W_v of the middle layer, or what comes nearest."""
    layers = sorted({layer for module in modules if (layer := layer_of(module)) is not None})
    middle = layers[len(layers) // 2] if layers else None
    here = [module for module in modules if layer_of(module) == middle] or list(modules)
    chosen = []
    for names in _FIRST:
        found = next((module for name in names for module in here if projection_of(module) == name), None)
        if found is not None and found not in chosen:
            chosen.append(found)
    return chosen or here[:2]


def overlap_figure(report: Report, names: tuple[str, str]) -> Drawn:
    """Draw mean φ(i, j) for every projection: figure 3 of the paper, averaged over the layers."""
    groups: dict[str, list[Any]] = defaultdict(list)
    for row in report.table("modules").rows:
        if row.get("phi"):
            groups[projection_of(row["module"])].append(row)
    _require(groups, f"No module has directions in both {quoted(names[0])} and {quoted(names[1])}: φ is undefined")
    grids = {projection: _mean_grid(rows) for projection, rows in groups.items()}
    figure, axes = _grid_of_axes(len(grids))
    picture = None
    top = _largest(grids.values())
    for axis, (projection, grid) in zip(axes, grids.items(), strict=True):
        picture = _heat(axis, grid, top)
        axis.set_title(safe_text(f"{projection} (mean of {len(groups[projection])})"))
        axis.set_xlabel(f"j of {_short(names[1])}")
        axis.set_ylabel(f"i of {_short(names[0])}")
    if picture is not None:
        figure.colorbar(picture, ax=list(axes), label="φ(i, j)", shrink=0.8)
    side = _side(report)
    return Drawn(
        "overlap",
        "Subspace similarity",
        f"φ(A, B, i, j) = ‖U_Aⁱᵀ U_Bʲ‖²_F / min(i, j) of the {side}, A = {safe_text(names[0])}, B = "
        f"{safe_text(names[1])}, averaged over the layers of each projection. 1: the smaller subspace lies within the "
        f"larger. After figure 3 of {_PAPER}.",
        figure,
    )


def baseline_figure(reports: Sequence[Report], names: tuple[str, str]) -> Drawn:
    """Draw φ of two modules beside what random subspaces have: figure 4 of the paper."""
    by_side = [(report, {row["module"]: row for row in report.table("modules").rows}) for report in reports]
    modules = leading_modules([module for module, row in by_side[0][1].items() if row.get("phi")])
    _require(modules, f"No module has directions in both {quoted(names[0])} and {quoted(names[1])}: φ is undefined")
    columns = len(reports) + 1
    figure = new_figure(_CELL * 1.25 * columns + 0.6, _CELL * max(1, len(modules)) + 0.4)
    axes = figure.subplots(max(1, len(modules)), columns, squeeze=False)
    picture = None
    top = _largest(rows[module]["phi"] for _, rows in by_side for module in modules)
    for line, module in zip(axes, modules, strict=True):
        for axis, (report, rows) in zip(line, by_side, strict=False):
            picture = _heat(axis, rows[module]["phi"], top)
            axis.set_title(f"{_label(module)}, {_word(report)}")
        picture = _heat(line[-1], by_side[0][1][module]["phi_random"], top)
        line[-1].set_title(f"{_label(module)}, random")
        for axis in line:
            axis.set_xlabel("j of B")
            axis.set_ylabel("i of A")
    if picture is not None:
        figure.colorbar(picture, ax=axes, label="φ(i, j)", shrink=0.8)
    return Drawn(
        "baseline",
        "Similarity beside chance",
        f"φ(i, j) between A = {safe_text(names[0])} and B = {safe_text(names[1])} of the input (right) and output "
        f"(left) directions, beside max(i, j)/d, the expectation for random subspaces. After figure 4 of {_PAPER}.",
        figure,
    )


def spectra_figure(report: Report, name: str) -> Drawn:
    """Draw σ_k of every module, one panel for each projection, one line for each layer."""
    import matplotlib as mpl

    known = [row for row in report.table("modules").rows if row["singular_values"] is not None]
    groups: dict[str, list[Any]] = defaultdict(list)
    for row in known:
        groups[projection_of(row["module"])].append(row)
    layers = [layer_of(row["module"]) or 0 for row in known]
    norm = mpl.colors.Normalize(min(layers, default=0), max(max(layers, default=0), 1))
    colours = mpl.colormaps[_MAP]
    figure, axes = _grid_of_axes(len(groups), height=1.7)
    for axis, (projection, rows) in zip(axes, groups.items(), strict=True):
        for row in rows:
            values = [value if value > 0 else float("nan") for value in row["singular_values"]]
            colour = colours(norm(layer_of(row["module"]) or 0))
            axis.plot(range(1, len(values) + 1), values, color=colour, linewidth=1.2)
        _logarithmic(axis, [value for row in rows for value in row["singular_values"] if value > 0])
        axis.xaxis.set_major_locator(mpl.ticker.MaxNLocator(4, integer=True))
        axis.set_title(safe_text(projection))
        axis.set_xlabel("k")
        axis.set_ylabel("σₖ")
    bar = figure.colorbar(mpl.cm.ScalarMappable(norm, colours), ax=list(axes), label="layer", shrink=0.8)
    bar.locator = mpl.ticker.MaxNLocator(integer=True)
    bar.update_ticks()
    return Drawn(
        "spectra",
        f"Spectra of {safe_text(name)}",
        "Singular values of ΔW = scaling·B·A by projection; colour is the layer. From the r×r core of the factors' QR.",
        figure,
    )


def norms_figure(report: Report, name: str) -> Drawn:
    """Draw ‖ΔW‖_F, layers by projections."""
    values = {row["module"]: row["frobenius_norm"] for row in report.table("modules").rows}
    figure = _matrix_figure(values, "‖ΔW‖_F")
    return Drawn("norms", f"Where {safe_text(name)} learnt", "‖ΔW‖_F by layer and projection.", figure)


def intruders_figure(report: Report, name: str) -> Drawn:
    """Draw how many intruder dimensions each weight has, layers by projections."""
    values = {row["module"]: row["intruder_count"] for row in report.table("modules").rows}
    threshold = report.parameters.get("threshold", 0.5)
    return Drawn(
        "intruders",
        f"Intruder dimensions of {safe_text(name)}",
        f"Leading left singular vectors of W+ΔW whose cosine with every one of W's is below {threshold} "
        "(arXiv 2410.21228), by layer and projection.",
        _matrix_figure(values, "intruders"),
    )


def amplification_figure(report: Report, name: str) -> Drawn:
    """Draw the amplification factor by layer, one line for each projection, random directions dashed."""
    import matplotlib as mpl

    groups: dict[str, list[Any]] = defaultdict(list)
    for row in report.table("modules").rows:
        if row["amplification"] is not None:
            groups[projection_of(row["module"])].append(row)
    _require(
        groups, f"No module of {quoted(name)} has an amplification factor: ΔW is zero, or W is along its directions"
    )
    figure = new_figure(6.4, 3.0)
    axis = figure.subplots()
    colours = mpl.colormaps["tab10"]
    for number, (projection, rows) in enumerate(groups.items()):
        places = [layer_of(row["module"]) or 0 for row in rows]
        colour = colours(number % 10)
        factor = [row["amplification"] for row in rows]
        axis.plot(places, factor, marker="o", markersize=3, color=colour, label=safe_text(projection))
        chance = [row["amplification_random"] for row in rows]
        axis.plot(places, chance, linestyle=":", linewidth=1.0, color=colour)
    axis.set_xlabel("layer")
    axis.set_ylabel("‖ΔW‖_F / ‖UᵀWV‖_F")
    axis.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
    axis.set_ylim(bottom=0)
    axis.legend(fontsize=8, ncols=2, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return Drawn(
        "amplification",
        f"Amplification of {safe_text(name)}",
        "Amplification factor ‖ΔW‖_F / ‖UᵀWV‖_F with U and V the leading singular directions of ΔW (solid) and random "
        f"(dotted). High: ΔW acts where W hardly does. After section 7.3 of {_PAPER}.",
        figure,
    )


def _require(shown: Collection[object], reason: str) -> None:
    """Refuse a figure of nothing."""
    if not shown:
        raise NumericalError(f"{reason}, and there is nothing to draw.", hint="lora-lab health finds dead modules.")


def _matrix_figure(values: Mapping[str, Any], label: str) -> Figure:
    """Layers × projections; what has no layer is a row of its own, what is missing stays empty."""
    import matplotlib as mpl

    projections = list(dict.fromkeys(projection_of(module) for module in values))
    layers = sorted({layer_of(module) for module in values}, key=lambda layer: (layer is None, layer or 0))
    grid = [[float("nan")] * len(layers) for _ in projections]
    for module, value in values.items():
        if value is not None:
            grid[projections.index(projection_of(module))][layers.index(layer_of(module))] = value
    figure = new_figure(max(3.6, 0.28 * len(layers) + 2.6), max(1.4, 0.24 * len(projections) + 0.9))
    axis = figure.subplots()
    picture = axis.imshow(grid, cmap=_MAP, aspect="auto", interpolation="none")
    axis.set_yticks(range(len(projections)), [safe_text(name) for name in projections])
    names = ["–" if layer is None else str(layer) for layer in layers]
    step = max(1, len(names) // 16)
    axis.set_xticks(range(0, len(names), step), names[::step])
    axis.set_xlabel("layer")
    axis.spines[:].set_visible(False)
    bar = figure.colorbar(picture, ax=axis, label=label)
    if all(isinstance(value, int) for value in values.values() if value is not None):
        bar.locator = mpl.ticker.MaxNLocator(integer=True)
        bar.update_ticks()
    return figure


def _logarithmic(axis: Axes, values: Sequence[float]) -> None:
    """A logarithmic height with plain numbers at it, also where it spans less than a decade."""
    import matplotlib as mpl

    axis.set_yscale("log")
    is_short = bool(values) and max(values) < 20 * min(values)
    plain = mpl.ticker.FuncFormatter(lambda value, _: f"{value:g}")
    axis.yaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1.0, 2.0, 5.0) if is_short else (1.0,)))
    axis.yaxis.set_major_formatter(plain)
    axis.yaxis.set_minor_formatter(mpl.ticker.NullFormatter())


def _grid_of_axes(count: int, *, height: float = _CELL) -> tuple[Figure, list[Axes]]:
    columns = max(1, min(_COLUMNS, count))
    lines = max(1, -(-count // columns))
    figure = new_figure(_CELL * columns + 0.9, height * lines + 0.3)
    axes = figure.subplots(lines, columns, squeeze=False).ravel().tolist()
    for spare in axes[count:]:
        spare.remove()
    return figure, axes[:count]


def _largest(grids: Iterable[Sequence[Sequence[float | None]]]) -> float:
    """The largest of all values: the end of the scale that all panels of a figure share."""
    return max((value for grid in grids for row in grid for value in row if value is not None), default=1.0)


def _heat(axis: Axes, grid: Sequence[Sequence[float | None]], top: float) -> Any:
    """φ from 0 to `top`, rows downwards as in the paper."""
    values = [[float("nan") if value is None else value for value in row] for row in grid]
    height, width = len(values), max((len(row) for row in values), default=0)
    extent = (0.5, width + 0.5, height + 0.5, 0.5)
    axis.spines[:].set_visible(False)
    picture = axis.imshow(values, cmap=_MAP, vmin=0.0, vmax=top, aspect="auto", interpolation="none", extent=extent)
    for ticks, size in ((axis.set_xticks, width), (axis.set_yticks, height)):
        ticks([1, size] if size > 1 else [1])
    axis.tick_params(colors=INK, length=2)
    return picture


def _mean_grid(rows: Sequence[Any]) -> list[list[float]]:
    """Mean of the grids over what all of them have."""
    height = min(len(row["phi"]) for row in rows)
    width = min(len(row["phi"][0]) for row in rows)
    return [[sum(row["phi"][i][j] for row in rows) / len(rows) for j in range(width)] for i in range(height)]


def _label(module: str) -> str:
    layer = layer_of(module)
    return safe_text(projection_of(module) if layer is None else f"{layer}.{projection_of(module)}")


def _word(report: Report) -> str:
    return str(report.parameters.get("side", "right"))


def _side(report: Report) -> str:
    return {
        "right": "input directions (right singular vectors of ΔW)",
        "left": "output directions (left singular vectors of ΔW)",
        "A": "right singular vectors of lora_A",
        "B": "left singular vectors of lora_B",
    }.get(_word(report), _word(report))


def _short(name: str) -> str:
    return safe_text(name, limit=24)
