"""The page and the figures: whole, safe, the same every time, and with the numbers of the analyses."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from builders import factors, write_adapter, write_base

from lora_lab import LoraLabError, Session
from lora_lab.domain import figures as shown
from lora_lab.reports import figures
from lora_lab.reports.canvas import INK, drawing
from lora_lab.session.reporting import FIGURES

VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Reads a page as a browser would; remembers elements, texts and attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture
def library(tmp_path: Path) -> Path:
    write_adapter(tmp_path / "one", seed=1)
    write_adapter(tmp_path / "two", seed=2)
    write_base(tmp_path / "base")
    return tmp_path


def report(library: Path, name: str, *adapters: str, **more: Any) -> Any:
    locators = [str(library / adapter) for adapter in adapters]
    return Session().report(locators, output=library / name, **more)


@pytest.fixture
def whole(library: Path) -> str:
    """The page of two adapters and their base."""
    report(library, "page.html", "one", "two", base=str(library / "base"))
    return (library / "page.html").read_text(encoding="utf-8")


def test_the_page_needs_nothing_but_itself(whole: str) -> None:
    """It is well-formed, asks for nothing from anywhere, runs no script, and forbids both to the browser."""
    page = Page(whole)
    assert page.open == []
    assert not {"script", "link", "iframe", "object", "embed", "form"} & set(page.tags)
    for _, name, value in page.attributes:
        assert not name.startswith("on")
        if name in ("src", "href", "xlink:href"):
            assert value.startswith(("#", "data:")), value
    assert "url(http" not in whole
    assert "@import" not in whole
    assert ("meta", "content", "default-src 'none'; style-src 'unsafe-inline'; img-src data:") in page.attributes
    assert "prefers-color-scheme: dark" in whole
    assert INK not in whole  # every line and letter has the colour of the text around
    assert len(whole) < 3_000_000


def test_every_figure_says_what_it_is(whole: str) -> None:
    """Each has a name for who cannot see it, axes, and a caption with formula and source."""
    page = Page(whole)
    drawn = page.tags.count("figure")
    assert drawn == page.tags.count("figcaption") == 10
    labels = [value for tag, name, value in page.attributes if (tag, name) == ("svg", "aria-label")]
    assert len(labels) == drawn
    assert "" not in labels
    text = " ".join(page.words)
    for said in (
        "lora_alpha",
        "target_modules",
        "φ(i, j)",
        "‖ΔW‖_F / ‖UᵀWV‖_F",
        "σₖ",
        "layer",
        "max(i, j)/d",
        "arXiv 2410.21228",
        "after table 7",
    ):
        assert said in text, said


def test_the_numbers_are_those_of_the_analyses(whole: str, library: Path) -> None:
    """What stands in the page is what the library computes."""
    text = " ".join(Page(whole).words)
    amplified = Session().analyze("amplify", [str(library / "one")], base=str(library / "base"))
    for row in amplified.table("modules").rows:
        assert shown.number(row["amplification"]) in text
    overlap = Session().analyze("overlap", [str(library / "one"), str(library / "two")], parameters={"side": "right"})
    assert shown.number(overlap.to_json()["totals"]["mean_phi"]) in text


def test_figures_draw_the_reports_values(library: Path) -> None:
    """The picture holds the grid itself, and the curve the singular values."""
    session = Session()
    both = [str(library / "one"), str(library / "two")]
    overlap = session.analyze("overlap", both, modules=["layers.2.self_attn.q_proj"])
    with drawing():
        drawn = figures.overlap_figure(overlap, ("one", "two"))
        (picture,) = drawn.figure.axes[0].images
        assert picture.get_array().tolist() == overlap.table("modules").rows[0]["phi"]
        spectrum = session.spectrum(both[0], modules=["layers.2.self_attn.q_proj"])
        (line,) = figures.spectra_figure(spectrum, "one").figure.axes[0].lines
        assert line.get_ydata().tolist() == spectrum.table("modules").rows[0]["singular_values"]


def test_the_same_every_time(library: Path) -> None:
    """Page and figures have the same bytes from the same input; the report says their hash."""
    for name in ("page.html", "figure.svg", "figure.pdf", "figure.png"):
        first = report(library, name, "one", "two")
        content = (library / name).read_bytes()
        (row,) = first.table("outputs").rows
        assert (row["sha256"], row["size_bytes"]) == (hashlib.sha256(content).hexdigest(), len(content))
        report(library, name, "one", "two", overwrite=True)
        assert (library / name).read_bytes() == content, name


@pytest.mark.parametrize(("suffix", "magic"), [(".png", b"\x89PNG"), (".pdf", b"%PDF"), (".svg", b"<?xml")])
@pytest.mark.parametrize("figure", FIGURES)
def test_single_figures(figure: str, suffix: str, magic: bytes, library: Path) -> None:
    """Each figure as each kind of file."""
    report(library, f"{figure}{suffix}", "one", "two", base=str(library / "base"), figure=figure)
    assert (library / f"{figure}{suffix}").read_bytes().startswith(magic)


def test_names_are_shown_and_never_obeyed(tmp_path: Path) -> None:
    """Markup, formulas and control characters in the names of modules and files are text."""
    evil = '<script>alert(1)</script>"onload=x $\\frac$'
    tensors = {
        name.replace("self_attn", evil).replace("layers.2", "layers.2\x1b[31m"): tensor
        for name, tensor in factors().items()
    }
    write_adapter(tmp_path / "<b>name", tensors)
    Session().report([str(tmp_path / "<b>name")], output=tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not {"script", "b"} & set(page.tags)
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", text)
    assert "alert(1)" in " ".join(page.words)


def test_what_cannot_be_computed_says_why(library: Path) -> None:
    """A base of another architecture leaves two sections empty, for one reason; the rest stands."""
    from safetensors.torch import save_file
    from torch import ones

    other = library / "other"
    other.mkdir()
    save_file({"blocks.0.weight": ones(3, 3)}, other / "model.safetensors")
    done = report(library, "page.html", "one", base=str(other))
    assert [finding.code for finding in done.findings] == ["section_missing"]
    text = (library / "page.html").read_text(encoding="utf-8")
    assert text.count("can be compared with") == 2
    assert "Spectrum: one" in text


def test_a_figure_that_cannot_be_drawn_leaves_the_numbers(library: Path) -> None:
    """A zero ΔW spans nothing: no grid can be drawn, and the differences of the two are there all the same."""
    zero = {name: tensor * 0 if "lora_B" in name else tensor for name, tensor in factors(seed=2).items()}
    write_adapter(library / "zero", zero)
    done = report(library, "page.html", "one", "zero")
    text = " ".join(Page((library / "page.html").read_text(encoding="utf-8")).words)
    assert "section_missing" in [finding.code for finding in done.findings]
    with pytest.raises(LoraLabError, match="No module has directions in both 'one' and 'zero'"):
        report(library, "figure.svg", "one", "zero")
    with pytest.raises(LoraLabError, match="No module of 'zero' has an amplification factor"):
        report(library, "figure.svg", "zero", base=str(library / "base"), figure="amplification")
    differences = Session().analyze("diff", [str(library / "one"), str(library / "zero")])
    assert shown.number(differences.to_json()["totals"]["difference_norm"]) in text


def test_all_together_and_what_is_left_out(library: Path) -> None:
    """Interference of all adapters, whether they land, and how many pairs the page has no room for."""
    for seed in (3, 4, 5):
        write_adapter(library / str(seed), seed=seed)
    base = str(library / "base")
    done = report(library, "page.html", "one", "two", "3", "4", "5", base=base, modules=["*layers.2.self_attn.q_proj"])
    text = " ".join(Page((library / "page.html").read_text(encoding="utf-8")).words)
    assert "the first 6 of 10 pairs" in text
    assert [finding.message for finding in done.findings if "of 10 pairs" in finding.message]
    together = Session().analyze("interference", [str(library / name) for name in ("one", "two", "3", "4", "5")])
    row = next(row for row in together.table("modules").rows if row["module"] == "model.layers.2.self_attn.q_proj")
    assert shown.number(row["energy_ratio"]) in text
    assert shown.number(row["sign_conflict"]) in text
    assert text.count("Check: ") == 2 * 5  # in the contents, and above each section


def test_one_reason_is_told_once(library: Path) -> None:
    """A ΔW that cannot be known empties several sections, and is one warning."""
    write_adapter(library / "olora", init_lora_weights="olora")
    done = report(library, "page.html", "olora")
    assert [finding.code for finding in done.findings] == ["section_missing"]


BAD: list[tuple[str, list[str], dict[str, Any], str]] = [
    ("page.txt", ["one"], {}, "The ending of"),
    ("page.html", [], {}, "nothing to report on"),
    ("page.html", ["one"], {"figure": "norms"}, "holds all figures"),
    ("f.png", ["one"], {"figure": "pie"}, "There is no figure 'pie', expected one of: overlap"),
    ("f.png", ["one"], {"figure": "overlap"}, "compares two adapters, got 1"),
    ("f.png", ["one"], {"figure": "intruders"}, "needs the base model"),
    ("nowhere/page.html", ["one"], {}, "is not there"),
    ("page.html", ["one"], {"base": "/no/such/base"}, "'/no/such/base'"),
    ("f.png", ["one"], {"base": "/no/such/base", "figure": "norms"}, "'/no/such/base'"),
    ("base/config.json", ["one"], {}, "The ending of"),
]


@pytest.mark.parametrize(("name", "adapters", "more", "fragment"), BAD)
def test_bad_wishes(name: str, adapters: list[str], more: dict[str, Any], fragment: str, library: Path) -> None:
    """One sentence, before anything is computed or written."""
    before = sorted(library.rglob("*"))
    with pytest.raises(LoraLabError) as caught:
        report(library, name, *adapters, **more)
    assert fragment in caught.value.message
    assert sorted(library.rglob("*")) == before


def test_an_existing_file_is_kept(library: Path) -> None:
    """Without the word for it nothing is replaced."""
    (library / "page.html").write_text("mine")
    with pytest.raises(LoraLabError, match="exists already"):
        report(library, "page.html", "one")
    assert (library / "page.html").read_text() == "mine"


def test_without_matplotlib(library: Path) -> None:
    """One sentence with what to install, and everything else goes on working."""
    blocked = "import sys; sys.modules['matplotlib'] = None; from lora_lab.cli import run; "
    asked = ["report", str(library / "one"), "-o", str(library / "page.html")]
    done = subprocess.run(
        [sys.executable, "-c", f"{blocked}sys.exit(run({asked!r}, open_application=lambda *_: 0))"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "matplotlib, which draws figures, is not installed" in done.stderr
    assert "pip install 'lora-lab[report]'" in done.stderr
    assert not (library / "page.html").exists()
