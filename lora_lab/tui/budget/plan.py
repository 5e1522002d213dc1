"""What is asked of the analysis ``budget``: rank or parameters, targets, tasks. No widget, no terminal, no counting."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ALL_LINEAR: Final = "all-linear"
EVERYTHING: Final = "*"
LARGEST_RANK: Final = 1 << 20
_LINEAR: Final = ("linear", "conv1d")
_QUERIES: Final = frozenset({"q", "q_proj", "q_lin", "query", "wq", "to_q", "q_a_proj", "q_b_proj"})
_VALUES: Final = frozenset({"v", "v_proj", "v_lin", "value", "wv", "to_v"})
_ATTENTION: Final = ("attn", "attention")
_HIGHEST_TICK: Final = 1024


class Kind(NamedTuple):
    """A matrix that every layer has, as the report's table of matrices names it."""

    pattern: str  # module path with * for numbers
    matrices: int
    shapes: tuple[tuple[int, ...], ...]
    kind: str
    part: str  # what --targets takes for it

    @property
    def is_linear(self) -> bool:
        """Whether LoRA is usually put on it."""
        return self.kind.lower() in _LINEAR

    @property
    def is_layered(self) -> bool:
        """Whether layers have it."""
        return EVERYTHING in self.pattern.split(".")

    @property
    def is_attention(self) -> bool:
        """Whether it is part of an attention block, by the name of the block."""
        return any(word in part.lower() for part in self.pattern.split(".")[:-1] for word in _ATTENTION)


class Preset(NamedTuple):
    """Targets with a name; ``kinds`` is None for what the analysis itself decides."""

    id: str
    title: str
    kinds: frozenset[str] | None  # patterns
    reason: str = ""  # why it cannot be chosen


def kinds_of(rows: Sequence[Mapping[str, Any]]) -> tuple[Kind, ...]:
    """Kinds of matrices from the rows of the report's table of matrices."""
    merged: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        merged.setdefault(str(row["module"]), []).append(row)
    counts = {pattern: sum(int(row["count"]) for row in group) for pattern, group in merged.items()}
    return tuple(
        Kind(
            pattern,
            counts[pattern],
            tuple(tuple(row["shape"]) for row in group),
            str(group[0]["kind"]),
            _part(pattern, counts[pattern], merged),
        )
        for pattern, group in merged.items()
    )


def _part(pattern: str, count: int, patterns: Mapping[str, object]) -> str:
    """The shortest end of `pattern` that names no other kind.

    Where that takes the number of the layer, the digits are spelt out: a glob's ``*`` would run over dots as well.
    """
    parts = pattern.split(".")
    for length in range(1, len(parts) + 1):
        ending = ".".join(parts[-length:])
        if parts[-length] != EVERYTHING and not any(
            other != pattern and (other == ending or other.endswith(f".{ending}")) for other in patterns
        ):
            if EVERYTHING not in parts[-length:]:
                return ending
            digits = range(1, len(str(max(0, count - 1))) + 1)
            return ",".join(ending.replace(EVERYTHING, "[0-9]" * number) for number in digits)
    return pattern


def all_linear_of(kinds: Sequence[Kind], matrices: int | None) -> frozenset[str] | None:
    """The kinds that all-linear stands for, told by how many matrices it has; None when that does not tell."""
    linear = [kind for kind in kinds if kind.is_linear]
    for found in ([kind for kind in linear if kind.is_layered], linear):
        if found and sum(kind.matrices for kind in found) == matrices:
            return frozenset(kind.pattern for kind in found)
    return None


def presets_of(kinds: Sequence[Kind], all_linear: frozenset[str] | None = None) -> tuple[Preset, ...]:
    """Targets that people choose by name.

    Parameters
    ----------
    all_linear : patterns that all-linear stands for, when they are known
    """
    attention = [kind for kind in kinds if kind.is_linear and kind.is_layered and kind.is_attention]
    others = [kind for kind in kinds if kind.is_linear and kind.is_layered and not kind.is_attention]
    lasts = {kind.pattern: kind.pattern.rpartition(".")[2].lower() for kind in attention}
    queries = {pattern for pattern, last in lasts.items() if last in _QUERIES}
    values = {pattern for pattern, last in lasts.items() if last in _VALUES}
    both = frozenset(queries | values) if queries and values else frozenset()
    return (
        Preset(ALL_LINEAR, "all-linear", all_linear),
        _preset("attention", "all attention", [kind.pattern for kind in attention], "no block is named attention"),
        _preset("qv", "q and v", both, "queries and values are not matrices of their own"),
        _preset("mlp", "all but attention", [kind.pattern for kind in others], "there is nothing but attention"),
    )


def _preset(id: str, title: str, patterns: Sequence[str] | frozenset[str], reason: str) -> Preset:  # noqa: A002
    return Preset(id, title, frozenset(patterns), "" if patterns else reason)


def ticks_of(kinds: Sequence[Kind]) -> tuple[int, ...]:
    """Powers of two up to the smaller side of the smallest matrix, beyond which more rank adds nothing to it."""
    side = min((min(shape[:2]) for kind in kinds for shape in kind.shapes if len(shape) >= 2), default=64)
    return tuple(1 << power for power in range(min(max(side, 1), _HIGHEST_TICK).bit_length()))


@dataclass(frozen=True)
class Plan:
    """One question to the analysis."""

    base: str
    rank: int = 8
    targets: str = ALL_LINEAR
    spent: int | None = None  # parameters to spend; then the rank is the answer
    tasks: int = 1
    head: int = 0
    dora: bool = False
    lora_bias: bool = False

    def arguments(self, ranks: Sequence[int], targets: Sequence[str] = ()) -> dict[str, Any]:
        """Keyword arguments of ``Session.analyze`` that answer it for every rank of `ranks`.

        Parameters
        ----------
        targets : instead of the plan's own
        """
        parameters: dict[str, Any] = {
            "targets": list(targets or (self.targets,)),
            "tasks": self.tasks,
            "head": self.head,
            "dora": self.dora,
            "lora_bias": self.lora_bias,
        }
        if self.spent is None:
            parameters["rank"] = sorted({*ranks, self.rank})
        else:
            parameters["parameters"] = self.spent
        return {"id": "budget", "locators": [self.base], "parameters": parameters}

    def command(self) -> str:
        """The command line that prints the same numbers; defaults are left out."""
        words = ["lora-lab", "budget", self.base, "--targets", self.targets]
        words += ["--rank", str(self.rank)] if self.spent is None else ["--parameters", str(self.spent)]
        words += ["--tasks", str(self.tasks)] if self.tasks != 1 else []
        words += ["--head", str(self.head)] if self.head else []
        words += ["--dora"] if self.dora else []
        words += ["--lora-bias"] if self.lora_bias else []
        return shlex.join(words)
