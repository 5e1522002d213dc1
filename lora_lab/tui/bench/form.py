"""What is to be measured: what is wrong with it, the call that does it, the command that does the same. No widget."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from lora_lab.benchmarks.latency.grid import cells_of
from lora_lab.errors import LoraLabError
from lora_lab.tui.command_line import session_words

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_lab.jobs.model import Call

Kind = Literal["swap", "latency"]
KINDS: Final[tuple[Kind, ...]] = ("swap", "latency")
CALLS: Final[Mapping[Kind, Call]] = {"swap": "bench_swap", "latency": "bench_latency"}
AS_STORED: Final = ""
DTYPES: Final = (AS_STORED, "float32", "bfloat16", "float16")
#: Of a kind, the fields that it reads.
READS: Final[Mapping[Kind, tuple[str, ...]]] = {
    "swap": ("a", "b", "base", "strategies", "repeats", "device"),
    "latency": ("base", "grid", "layers", "rank", "dtype", "repeats", "device"),
}
_NEEDED: Final = {"a": "the first adapter", "b": "the second adapter", "base": "the model of both"}
_COUNTS: Final = ("repeats", "layers", "rank")
_DEVICE: Final = re.compile(r"auto|cpu|mps|cuda(:[0-9]{1,4})?")


@dataclass(frozen=True)
class BenchForm:
    """A filled form.

    Parameters
    ----------
    typed : what is in every field, by its id; nothing leaves the choice to the benchmark
    session : options of the session that will do it
    """

    kind: Kind
    typed: Mapping[str, str]
    session: Mapping[str, Any] = field(default_factory=dict)

    def value(self, name: str) -> str:
        """What is typed in a field that this kind reads; nothing otherwise."""
        return self.typed.get(name, "").strip() if name in READS[self.kind] else ""

    def missing(self) -> str | None:
        """What is needed and not there, as a sentence."""
        lacking = [said for name, said in _NEEDED.items() if self.kind == "swap" and not self.value(name)]
        return f"Give {' and '.join(lacking)}." if lacking else None

    def faults(self) -> dict[str, str]:
        """Sentences about fields that cannot be used, by field."""
        found = {}
        for name in _COUNTS:
            typed = self.value(name)
            if typed and not (typed.isascii() and typed.isdecimal() and int(typed)):
                found[name] = f"{name} is a whole number from 1."
        if self.value("device") and not _DEVICE.fullmatch(self.value("device")):
            found["device"] = "device is auto, cpu, cuda, cuda:N or mps."
        if self.value("grid"):
            try:
                cells_of(self.value("grid"))
            except LoraLabError as error:
                found["grid"] = str(error)
        return found

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of the session's method."""
        given: dict[str, Any] = {name: int(self.value(name)) for name in _COUNTS if self.value(name)}
        given |= {name: self.value(name) for name in ("base", "grid", "dtype", "device") if self.value(name)}
        if self.kind == "swap":
            given["adapters"] = [self.value("a"), self.value("b")]
            if self.strategies:
                given["strategies"] = self.strategies
        return given

    @property
    def strategies(self) -> list[str]:
        """Ids of those that are wished for; none means all."""
        return [name for name in re.split(r"[\s,]+", self.value("strategies")) if name]

    def command(self) -> str:
        """What does the same in a shell."""
        words = ["lora-lab", "bench", self.kind]
        words += [self.value("a"), self.value("b")] if self.kind == "swap" else []
        for name in ("base", "grid", "layers", "rank", "dtype"):
            words += [f"--{name}", self.value(name)] if self.value(name) else []
        words += ["--strategies", ",".join(self.strategies)] if self.strategies else []
        words += ["--repeats", self.value("repeats")] if self.value("repeats") else []
        session = {**self.session, **({"device": self.value("device")} if self.value("device") else {})}
        return shlex.join([*words, *session_words(session)])

    @property
    def title(self) -> str:
        """What the job is called."""
        subjects = [self.value(name) for name in ("a", "b")] if self.kind == "swap" else [self.value("base")]
        shown = " ⇄ ".join(one.rstrip("/").rpartition("/")[2] for one in subjects if one)
        return f"bench {self.kind} {shown or 'GPT-2 medium'}"
