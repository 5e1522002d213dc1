"""Everything that can be said about some adapters, gathered for one page or one figure."""

from __future__ import annotations

import hashlib
import os
from itertools import combinations
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from lora_lab.domain.progress import Unwatched, stop_if_cancelled
from lora_lab.domain.report import Column, ColumnKind, Finding, Report, Table
from lora_lab.errors import CancelledError, LoraLabError, OperationError, quoted
from lora_lab.reports.canvas import FORMATS, as_file, drawing, require_matplotlib
from lora_lab.session.placing import InMebibytes
from lora_lab.storage.atomic import write_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from lora_lab.domain.progress import Observer
    from lora_lab.reports.figures import Drawn
    from lora_lab.reports.page import Section
    from lora_lab.session.session import Session

FIGURES: Final = ("overlap", "baseline", "spectra", "norms", "amplification", "intruders")
_PAGE: Final = ".html"
_MOST_PAIRS: Final = 6
_SIGN_ROWS: Final = 256  # of each ΔW whose signs are compared: all of a large one would take minutes
_WRITTEN: Final = (
    Column("path", "File", ColumnKind.TEXT),
    Column("size_bytes", "Size", ColumnKind.BYTES, unit="bytes"),
    Column("sha256", "sha256", ColumnKind.TEXT, is_wide=True),
)
_FIGURES: Final = (
    Column("figure", "Figure", ColumnKind.TEXT),
    Column("title", "Title", ColumnKind.TEXT),
    Column("caption", "Caption", ColumnKind.TEXT, is_wide=True),
)
_SETTINGS: Final = (Column("key", "Setting", ColumnKind.TEXT), Column("value", "Value", ColumnKind.VALUE))


def write_report(
    session: Session,
    locators: Sequence[str],
    *,
    base: str | None,
    output: Path,
    figure: str | None,
    modules: Sequence[str],
    overwrite: bool,
    observer: Observer | None,
) -> Report:
    """Write the page or the figure, as :meth:`lora_lab.Session.report` describes."""
    suffix = output.suffix.lower()
    _check(locators, base, output, suffix, figure, overwrite=overwrite)
    require_matplotlib()
    gathered = _Gathering(session, locators, base, modules, observer or Unwatched())
    if suffix == _PAGE:
        from lora_lab.reports.page import page

        with drawing():
            sections = list(gathered.sections())
        content = page(f"LoRA report: {', '.join(gathered.names)}", sections)
        drawn = [one for section in sections for one in section.drawn]
        missing = [Finding("section_missing", section.missing) for section in sections if section.missing]
        missing = list(dict.fromkeys(missing))
    else:
        with drawing():
            one = gathered.figure(figure or ("overlap" if len(locators) > 1 else "spectra"))
        content, drawn, missing = as_file(one.figure, suffix), [one], []
    write_bytes(output, content, overwrite=overwrite)
    row = {"path": str(output), "size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return Report(
        command="report",
        title=f"Report on {', '.join(gathered.names)}",
        tables=(
            Table("outputs", "Written", _WRITTEN, (row,), key="path"),
            Table("figures", "Figures", _FIGURES, tuple(_described(one) for one in drawn), key="figure"),
        ),
        findings=tuple(missing),
        inputs=gathered.inputs(),
    )


def _described(drawn: Drawn) -> dict[str, str]:
    return {"figure": drawn.id, "title": drawn.title, "caption": drawn.caption}


def _check(
    locators: Sequence[str], base: str | None, output: Path, suffix: str, figure: str | None, *, overwrite: bool
) -> None:
    if not locators:
        raise LoraLabError("There is nothing to report on, expected at least one adapter.")
    endings = ", ".join((_PAGE, *FORMATS))
    if suffix != _PAGE and suffix not in FORMATS:
        raise LoraLabError(
            f"The ending of {quoted(output)} is {quoted(suffix)}, expected one of: {endings}.",
            hint="FILE.html is the page; the others are one figure.",
        )
    if figure is not None and figure not in FIGURES:
        raise LoraLabError(f"There is no figure {quoted(figure)}, expected one of: {', '.join(FIGURES)}.")
    if figure is not None and suffix == _PAGE:
        raise LoraLabError(
            f"The page {quoted(output)} holds all figures, and --figure asks for {quoted(figure)} alone.",
            hint="Leave --figure out, or end the name in .png, .svg or .pdf.",
        )
    if figure in ("overlap", "baseline") and len(locators) < 2:
        raise LoraLabError(f"The figure {figure} compares two adapters, got 1.", hint="Give another one.")
    if figure in ("amplification", "intruders") and base is None:
        raise LoraLabError(f"The figure {figure} needs the base model, and none was given.", hint="Pass --base BASE.")
    if os.path.lexists(output) and not overwrite:
        raise OperationError(f"{quoted(output)} exists already.", hint="Choose another name, or pass --overwrite.")
    if not output.absolute().parent.is_dir():
        raise OperationError(f"The folder {quoted(output.absolute().parent)} is not there.", hint="Make it first.")


class _Part(NamedTuple):
    """A kind of section: the analyses it shows and the figures drawn from them."""

    id: str
    title: str
    about: str
    analyses: tuple[str, ...]
    figures: tuple[str, ...] = ()


_CONFIGURATION: Final = _Part(
    "configuration",
    "Configuration",
    "What the files say, and everything that changes ΔW or the model beside it.",
    ("inspect", "settings"),
)
_SPECTRUM: Final = _Part(
    "spectrum",
    "Spectrum",
    "How much ΔW changes, where, and in how many directions.",
    ("spectrum",),
    ("norms", "spectra"),
)
_HEALTH: Final = _Part("health", "Health", "Dead modules, near rank 1, and the rank that would do.", ("health",))
_OVERLAP: Final = _Part(
    "overlap",
    "Overlap",
    "Which directions two adapters share, beside what chance would give.",
    ("overlap", "diff"),
    ("overlap", "baseline"),
)
_INTERFERENCE: Final = _Part(
    "interference",
    "Interference",
    "What the adapters do to each other when added; signs are compared on at most "
    f"{_SIGN_ROWS} rows of each ΔW, drawn by the seed.",
    ("interference",),
)
_CHECK: Final = _Part("check", "Check", "Whether the adapter lands on this base.", ("check",))
_AMPLIFICATION: Final = _Part(
    "amplification",
    "Amplification",
    "How strongly ΔW amplifies directions of the base, beside W's own and random ones.",
    ("amplify",),
    ("amplification",),
)
_INTRUDERS: Final = _Part(
    "intruders",
    "Intruder dimensions",
    "Leading directions of W+ΔW that are none of W's own.",
    ("intruders",),
    ("intruders",),
)


class _Gathering:
    """Runs the analyses that the page needs, each once."""

    def __init__(
        self, session: Session, locators: Sequence[str], base: str | None, modules: Sequence[str], observer: Observer
    ) -> None:
        self._session = session
        self._locators = list(locators)
        self._base = base
        self._modules = modules
        self._observer = observer
        self._known: dict[Any, Report] = {}
        if base is not None:
            # What is said against one that cannot be opened would be missing everywhere.
            session.base(base, observer=InMebibytes(observer))
        self.names = _told_apart([session.adapter(locator).name for locator in locators])

    def inputs(self) -> tuple[Any, ...]:
        """What was read, each once."""
        records = [record for report in self._known.values() for record in report.inputs]
        return tuple({record.locator: record for record in records}.values())

    def _run(self, id: str, *places: int, **parameters: Any) -> Report:  # noqa: A002 - the field's own name
        key = (id, places, tuple(sorted(parameters.items())))
        if key not in self._known:
            stop_if_cancelled(self._observer)
            if id in ("inspect", "settings"):
                self._known[key] = self._of_files(id, self._locators[places[0]])
                return self._known[key]
            needs_base = id in ("amplify", "intruders", "check")
            self._known[key] = self._session.analyze(
                id,
                [self._locators[place] for place in places],
                base=self._base if needs_base else None,
                parameters=parameters,
                modules=self._modules,
                observer=self._observer,
            )
        return self._known[key]

    def _of_files(self, id: str, locator: str) -> Report:  # noqa: A002
        """What headers and adapter_config.json say."""
        if id == "inspect":
            return self._session.inspect(locator, modules=self._modules)
        adapter = self._session.adapter(locator)
        rows = tuple({"key": key, "value": value} for key, value in adapter.configuration.items())
        return Report(
            "settings", "adapter_config.json", (Table("config", "adapter_config.json", _SETTINGS, rows, "key"),)
        )

    def figure(self, id: str) -> Drawn:  # noqa: A002
        """Draw one figure, of the first adapter or the first two."""
        return self._figure(id, 0, 1 if len(self._locators) > 1 else 0)

    def _figure(self, id: str, first: int, second: int) -> Drawn:  # noqa: A002
        from lora_lab.reports import figures

        names = (self.names[first], self.names[second])
        if id == "overlap":
            return figures.overlap_figure(self._run("overlap", first, second), names)
        if id == "baseline":
            sides = [self._run("overlap", first, second, side=side) for side in ("right", "left")]
            return figures.baseline_figure(sides, names)
        if id == "amplification":
            return figures.amplification_figure(self._run("amplify", first), names[0])
        if id == "intruders":
            return figures.intruders_figure(self._run("intruders", first), names[0])
        drawers: dict[str, Callable[[Report, str], Drawn]] = {
            "spectra": figures.spectra_figure,
            "norms": figures.norms_figure,
        }
        return drawers[id](self._run("spectrum", first), names[0])

    def sections(self) -> Iterator[Section]:
        """Yield the parts of the page; what cannot be computed says why and stops nothing."""
        everyone = range(len(self._locators))
        for place in everyone:
            yield self._section(_CONFIGURATION, place)
            yield self._section(_SPECTRUM, place)
            yield self._section(_HEALTH, place)
        pairs = list(combinations(everyone, 2))
        for first, second in pairs[:_MOST_PAIRS]:
            yield self._section(_OVERLAP, first, second)
        if pairs:
            yield from self._together(len(pairs))
        if self._base is not None:
            for place in everyone:
                yield self._section(_CHECK, place)
                yield self._section(_AMPLIFICATION, place)
                yield self._section(_INTRUDERS, place)

    def _together(self, pairs: int) -> Iterator[Section]:
        """Yield what is said of all adapters at once, and of the pairs that are left out."""
        from lora_lab.reports.page import Section

        if pairs > _MOST_PAIRS:
            said = (
                f"The overlap of the first {_MOST_PAIRS} of {pairs} pairs is shown, in the order of the adapters; "
                "a page of two adapters has that of any other pair."
            )
            yield Section("overlap-more", "Overlap: other pairs", _OVERLAP.about, missing=said)
        yield self._section(_INTERFERENCE, *range(len(self._locators)), sign_rows=_SIGN_ROWS)

    def _section(self, part: _Part, *places: int, **parameters: Any) -> Section:
        """One part of the page; a figure that cannot be drawn leaves the numbers there."""
        from lora_lab.reports.page import Section

        id = "-".join([part.id, *map(str, places)])  # noqa: A001
        title = f"{part.title}: {' and '.join(self.names[place] for place in places)}"
        reports: list[Report] = []
        drawn: list[Drawn] = []
        try:
            reports.extend(self._run(analysis, *places, **parameters) for analysis in part.analyses)
            drawn.extend(self._figure(figure, places[0], places[-1]) for figure in part.figures)
        except CancelledError:
            raise
        except LoraLabError as error:
            missing = f"{error.message} {error.hint}".strip()
            return Section(id, title, part.about, tuple(reports), tuple(drawn), missing)
        return Section(id, title, part.about, tuple(reports), tuple(drawn))


def _told_apart(names: Sequence[str]) -> list[str]:
    """`names`, with numbers where two are the same."""
    return [f"{name} ({place + 1})" if list(names).count(name) > 1 else name for place, name in enumerate(names)]
