"""What is asked for: what is wrong with it, the call that does it, and the command that does the same. No widget."""

from __future__ import annotations

import math
import os
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from lora_lab.errors import LoraLabError, quoted
from lora_lab.operations.combine_options import CombineOptions
from lora_lab.tui.command_line import session_words

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lora_lab.extension.contracts import MergeMethod

Operation = Literal["combine", "resize", "extract"]
OPERATIONS: Final[tuple[Operation, ...]] = ("combine", "resize", "extract")
CUTS: Final = ("rank", "energy", "error", "parameters")
REFUSE, AVERAGE, SKIP, FROM = "refuse", "average", "skip", "from:"
#: Stands for an output that is not there; a dry run writes nothing under it.
UNWRITTEN: Final = ".lora_lab-preview"
_WHOLE_NUMBERS: Final = ("rank", "parameters")
_PLACES: Final = {"resize": ("adapter",), "extract": ("base", "finetuned")}
_WANTED: Final = {"adapter": "an adapter", "base": "the model before training", "finetuned": "the model after it"}
#: Of an operation, which fields of :attr:`Recipe.typed` it reads.
READS: Final[Mapping[Operation, tuple[str, ...]]] = {
    "combine": (*CUTS, "base", "saved", "dtype", "seed", "modules", "output"),
    "resize": (*CUTS, "base", "dtype", "seed", "modules", "output"),
    "extract": ("rank", "energy", "others", "dtype", "seed", "modules", "output"),
}


class Source(NamedTuple):
    """One adapter of a combination, and its strength as typed."""

    locator: str
    strength: str = "1"


@dataclass(frozen=True)
class Recipe:
    """A filled form.

    Parameters
    ----------
    sources : of a combination
    method : of a combination; None until it is known which there are
    settings : what is typed for the method's parameters, by their ids
    typed : what is in every other field, by its id
    session : options of the session that will do it
    """

    operation: Operation
    sources: tuple[Source, ...] = ()
    method: MergeMethod | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    typed: Mapping[str, str] = field(default_factory=dict)
    session: Mapping[str, Any] = field(default_factory=dict)

    def _text(self, name: str) -> str:
        return self.typed.get(name, "").strip() if name in (*READS[self.operation], *self.places) else ""

    @property
    def places(self) -> tuple[str, ...]:
        """Fields that hold one locator each."""
        return _PLACES.get(self.operation, ())

    @property
    def locators(self) -> list[str]:
        """What is read, in order."""
        if self.operation == "combine":
            return [source.locator for source in self.sources]
        return [_path(self._text(name)) for name in self.places]

    @property
    def output(self) -> str:
        """The folder to appear."""
        return _path(self._text("output"))

    # What is wrong

    def lacking(self) -> str | None:
        """The sentence that asks for what is not there yet; None when nothing is missing."""
        if self.operation == "combine":
            if not self.sources:
                return "There is no input: a adds one."
            if self.method is None:
                return "The methods are being read."
        for name in self.places:
            if not self._text(name):
                return f"{_WANTED[name].capitalize()} is missing."
        if self.operation == "resize" and not any(self._text(name) for name in CUTS):
            return "Nothing says how far to go: give a rank, an energy, an error or a number of parameters."
        return None

    def faults(self) -> dict[str, str]:
        """What is wrong with what is typed, by field: ``strength:0``, ``setting:density``, ``rank`` and so on."""
        return dict((*self._of_strengths(), *self._of_settings(), *self._of_cut(), *self._of_rest()))

    def _of_strengths(self) -> Iterator[tuple[str, str]]:
        for place, source in enumerate(self.sources if self.operation == "combine" else ()):
            try:
                is_number = math.isfinite(float(source.strength))
            except ValueError:
                is_number = False
            if not is_number:
                yield f"strength:{place}", f"The strength is {quoted(source.strength)}, expected a finite number."

    def _of_settings(self) -> Iterator[tuple[str, str]]:
        for parameter in self.method.parameters if self.method is not None and self.operation == "combine" else ():
            try:
                for part in self._setting(parameter.id, is_repeatable=parameter.is_repeatable):
                    parameter.parse(part)
            except LoraLabError as error:
                yield f"setting:{parameter.id}", error.message

    def _setting(self, name: str, *, is_repeatable: bool) -> list[str]:
        typed = self.settings.get(name, "").strip()
        if not typed:
            return []
        return _words(typed, name) if is_repeatable else [typed]

    def _of_cut(self) -> Iterator[tuple[str, str]]:
        wrong = False
        for name in CUTS:
            try:
                value = self._number(name)
                if value is not None:
                    CombineOptions(**{name: value})
            except LoraLabError as error:
                wrong = True
                yield name, error.message
        if wrong:
            return
        try:
            CombineOptions(**self._cut())
        except LoraLabError as error:
            yield "parameters" if self._text("parameters") else "error", error.message

    def _of_rest(self) -> Iterator[tuple[str, str]]:
        try:
            if self._seed() < 0:
                raise ValueError
        except ValueError:
            yield "seed", f"The seed is {quoted(self._text('seed'))}, expected a whole number from 0 up."
        try:
            self._modules()
        except LoraLabError as error:
            yield "modules", error.message
        folder = os.path.dirname(os.path.abspath(self.output))  # noqa: PTH100, PTH120 - as typed
        if self.output and not os.path.isdir(folder):  # noqa: PTH112
            yield "output", f"The folder {quoted(folder)} is not there, in which the output would appear."

    def _number(self, name: str) -> Any:
        typed = self._text(name)
        if not typed:
            return None
        kind, wanted = (int, "a whole number") if name in _WHOLE_NUMBERS else (float, "a number")
        try:
            return kind(typed)
        except ValueError:
            raise LoraLabError(f"The {name} is {quoted(typed)}, expected {wanted}.") from None

    def _cut(self) -> dict[str, Any]:
        return {name: value for name in CUTS if (value := self._number(name)) is not None}

    def _seed(self) -> int:
        typed = self._text("seed")
        return int(typed) if typed else int(self.session.get("seed") or 0)

    def _modules(self) -> list[str]:
        return _words(self._text("modules"), "modules")

    # What is done

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of the session's method of this name; sound where there are no faults."""
        given: dict[str, Any] = {**self._cut(), "seed": self._seed(), "output": self.output}
        if self._text("dtype"):
            given["dtype"] = self._text("dtype")
        if self._modules():
            given["modules"] = self._modules()
        if self.operation != "extract" and self._text("base"):
            given["base"] = _path(self._text("base"))
        if self.operation != "combine":
            given |= dict(zip(self.places, self.locators, strict=True))
            return given | ({"save_others": True} if self._text("others") else {})
        given |= {
            "adapters": self.locators,
            "strengths": [float(source.strength) for source in self.sources],
            "method": self.method.id if self.method else "",
            "settings": self.changed_settings(),
        }
        saved = self._text("saved")
        if saved.startswith(FROM):
            given["saved_modules_from"] = saved.removeprefix(FROM)
        elif saved in (AVERAGE, SKIP):
            given[f"{saved}_saved_modules"] = True
        return given

    def comparison(self, settings: Mapping[str, list[str]]) -> dict[str, Any]:
        """What every method is asked for; the one that is chosen makes no difference.

        Parameters
        ----------
        settings : ``METHOD.NAME`` to what is typed
        """
        given = {name: value for name, value in self.arguments().items() if name not in ("method", "output")}
        return {**given, "settings": dict(settings)}

    def foretelling(self) -> dict[str, Any]:
        """The same, computed and not written; where the output's name is free it makes no difference."""
        output = self.output if self.output and os.path.lexists(self.output) else UNWRITTEN
        return {**self.arguments(), "output": output, "overwrite": True, "dry_run": True}

    def changed_settings(self) -> dict[str, list[str]]:
        """Of the parameters that are not as they are declared, what is typed."""
        found = {}
        for parameter in self.method.parameters if self.method is not None else ():
            typed = self._setting(parameter.id, is_repeatable=parameter.is_repeatable)
            values: Any = tuple(parameter.parse(part) for part in typed)
            usual = tuple(parameter.default or ()) if parameter.is_repeatable else (parameter.default,)
            if typed and values != usual:
                found[parameter.id] = typed
        return found

    def command(self) -> str:
        """The command that does the same, quoted for a shell; sound where there are no faults.

        Examples
        --------
        >>> Recipe("resize", typed={"adapter": "a b", "energy": ".9", "output": "out"}).command()
        "lora-lab resize 'a b' --energy .9 -o out"
        """
        words = ["lora-lab", self.operation, *self.locators]
        if self.operation == "combine" and self.method is not None:
            words += ["--method", self.method.id]
            if any(float(source.strength) != 1.0 for source in self.sources):
                words += [word for source in self.sources for word in ("--strength", source.strength.strip())]
            words += [
                word
                for name, parts in self.changed_settings().items()
                for part in parts
                for word in ("--param", f"{name}={part}")
            ]
        words += [word for name in CUTS if self._text(name) for word in (f"--{name}", self._text(name))]
        words += self._saved_words()
        if self.operation != "extract" and self._text("base"):
            words += ["--base", _path(self._text("base"))]
        if self._text("dtype"):
            words += ["--dtype", self._text("dtype")]
        words += [word for glob in self._modules() for word in ("--module", glob)]
        return shlex.join([*words, *session_words({**self.session, "seed": self._seed()}), "-o", self.output])

    def _saved_words(self) -> list[str]:
        saved = self._text("saved")
        if saved.startswith(FROM):
            return ["--saved-modules-from", saved.removeprefix(FROM)]
        if saved in (AVERAGE, SKIP):
            return [f"--{saved}-saved-modules"]
        return ["--save-others"] if self._text("others") else []


def _path(typed: str) -> str:
    """A locator as typed; a leading hyphen would be taken for an option, whoever reads it."""
    place = os.path.expanduser(typed.strip())  # noqa: PTH111 - a locator is no path yet
    return f"./{place}" if place.startswith("-") else place


def _words(typed: str, name: str) -> list[str]:
    try:
        return shlex.split(typed)
    except ValueError:
        raise LoraLabError(f"What is typed for {name} has a quotation mark without its second.") from None


def free_name(wanted: str) -> str:
    """`wanted`, or the first of ``wanted-2``, ``wanted-3`` … that nothing is called."""
    number, name = 1, wanted
    while os.path.lexists(name):
        number += 1
        name = f"{wanted}-{number}"
    return name


def proposed_output(operation: Operation, locators: list[str]) -> str:
    """A name for the result that is free, beside the last of the inputs where that is a local folder."""
    if not locators or not os.path.lexists(locators[-1]):
        return free_name({"combine": "combined", "resize": "resized", "extract": "extracted"}[operation])
    place = Path(locators[-1])
    if operation == "combine":
        return free_name(str(place.parent / "combined"))
    return free_name(str(place.parent / f"{place.name or 'adapter'}-{'resized' if operation == 'resize' else 'lora'}"))
