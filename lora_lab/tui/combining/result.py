"""Fields for what is read where it is one of its kind, and for what the result shall be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lora_lab.tui.combining.fields import ChoiceField, Entry, Field, FieldLine, NumberEntry, Option
from lora_lab.tui.combining.recipe import AVERAGE, REFUSE, SKIP

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lora_lab.tui.combining.recipe import Operation

_FLOATS: Final = tuple(Option(name, name) for name in ("float32", "bfloat16", "float16", "float64"))
DTYPES: Final[Mapping[Operation, tuple[Option, ...]]] = {
    "combine": (Option("", "widest"), *_FLOATS),
    "resize": (Option("", "as it is"), *_FLOATS),
    "extract": (Option("", "float32"), *_FLOATS[1:]),
}
WHOLE: Final = (Option(REFUSE, "refuse"), Option(AVERAGE, "average"), Option(SKIP, "skip"))


#: What is shown in an empty field for a locator; and in that of a base which is not needed as a rule.
WANTED, SELDOM = "a folder, org/name", "only for DoRA and PiSSA"
#: Of the lines that :func:`place_lines` makes.
PLACES: Final = ("combine-adapter", "combine-base", "combine-finetuned")


def place_lines(known: Mapping[str, str]) -> Iterator[FieldLine]:
    """An adapter to resize; a base and its fine-tune to extract from."""
    for id, label in zip(PLACES, ("adapter", "base", "fine-tune"), strict=True):  # noqa: A001 - the field's own name
        name = id.removeprefix("combine-")
        entry = Entry(known.get(name, ""), placeholder=WANTED)
        yield FieldLine(Field(name, label, entry), id=id)


def result_lines(known: Mapping[str, str]) -> Iterator[FieldLine]:
    """All of them; those that an operation does not read are hidden."""
    yield FieldLine(
        Field("rank", "rank", NumberEntry(placeholder="any"), about="the most of every module"),
        Field("energy", "energy", NumberEntry(placeholder="0…1"), about="share of ‖D‖² that each keeps"),
        id="combine-rank",
    )
    yield FieldLine(
        Field("error", "error", NumberEntry(placeholder="0…1"), about="relative, that each may have"),
        Field("parameters", "params", NumberEntry(placeholder="any"), about="of all together, least lost"),
        id="combine-error",
    )
    yield FieldLine(
        Field("saved", "saved", ChoiceField(WHOLE), about="what several adapters bring whole"), id="combine-saved"
    )
    yield FieldLine(
        Field(
            "others",
            "others",
            ChoiceField((Option("", "left out"), Option("yes", "taken along whole"))),
            about="norms, biases and new modules",
        ),
        id="combine-others",
    )
    yield FieldLine(Field("dtype", "dtype", ChoiceField(DTYPES["combine"]), about="of the factors"), id="combine-dtype")
    yield FieldLine(
        Field("seed", "seed", NumberEntry(known.get("seed", "0"), placeholder="0"), about="of all that is drawn"),
        Field("modules", "modules", Entry(placeholder="all"), about="globs, with spaces between"),
        id="combine-seed",
    )
    yield FieldLine(
        Field("output", "output", Entry(known.get("output", "")), about="the folder to appear"), id="combine-output"
    )
