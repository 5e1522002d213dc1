"""The mixed benchmark: tokens a second of a batch of several adapters, grouped or switched, and where the two cross.

Switched, N adapters take N − 1 swaps a batch, since the order turns round. A swap has paid off after
swap/(grouped − merged a token) tokens of its adapter, where that is more than nothing.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch

from lora_lab.benchmarks.columns import SPREAD
from lora_lab.benchmarks.copying import cache_findings, sets_of_weights
from lora_lab.benchmarks.latency.adapters import factors_for
from lora_lab.benchmarks.latency.checking import relative_distance, tolerance_of
from lora_lab.benchmarks.latency.grid import WARM_UPS, Cell, Course, Speed, course_of
from lora_lab.benchmarks.latency.setup import READY_BYTES, Setup, require_counts, require_targets, setup_of
from lora_lab.benchmarks.latency.several import Switching, grouped
from lora_lab.benchmarks.measurement import Measurement
from lora_lab.benchmarks.rounds import Contestant, Rounds
from lora_lab.benchmarks.spread import spread_of
from lora_lab.benchmarks.swapping.forward import tokens_until
from lora_lab.domain.progress import Unwatched, stop_if_cancelled
from lora_lab.domain.report import Column, ColumnKind, Finding, Report, Scalars, Table
from lora_lab.errors import LoraLabError, NumericalError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lora_lab.benchmarks.latency.blocks import Noise, Stack
    from lora_lab.domain.base import Base
    from lora_lab.domain.progress import Observer

COUNTS: Final = (1, 2, 4, 8, 16, 32)
GROUPED, SWITCHED, MERGED, SWAP = "grouped", "switched", "merged", "swap"
_KINDS: Final = (GROUPED, SWITCHED, MERGED)
_ROWS: Final = (
    Column("variant", "Way", ColumnKind.TEXT),
    Column("adapters", "Adapters", ColumnKind.INTEGER),
    SPREAD[0],
    Column("tokens_per_second", "Tokens/s", formula="batch · length / p50"),
    *SPREAD[1:],
)
_CROSSING: Final = (
    Column("adapters", "Adapters", ColumnKind.INTEGER),
    Column("grouped_tokens_per_second", "Grouped tokens/s"),
    Column("switched_tokens_per_second", "Switched tokens/s", formula="swaps included"),
    Column("ratio", "Switched/grouped", formula="of tokens/s, median of paired rounds"),
    Column("ratio_low", "from", formula="P(the median of paired rounds within) ≥ 95 %"),
    Column("ratio_high", "to"),
    Column(
        "tokens_to_pay_off",
        "Tokens a swap has to serve",
        formula="swap / (grouped − merged a token); undefined where merged rows alone are not faster for certain",
    ),
    Column("faster", "Faster", ColumnKind.TEXT, formula="even where the interval holds 1"),
)
_SUMMARY: Final = (
    Column("swap_seconds", "One swap", unit="s", formula="p50"),
    Column("switching_wins_up_to", "Switching is faster up to", ColumnKind.INTEGER, formula="adapters in the batch"),
    Column("grouping_wins_from", "Grouping is faster from", ColumnKind.INTEGER, formula="adapters in the batch"),
    Column("relative_drift", "Drift", formula="of the merged weights after all swaps"),
)
_WORKLOAD: Final = (
    Column("model", "Shapes of", ColumnKind.TEXT),
    Column("layers", "Layers", ColumnKind.INTEGER),
    Column("model_layers", "Layers of the model", ColumnKind.INTEGER, is_wide=True),
    Column("dtype", "dtype", ColumnKind.TEXT),
    Column("batch", "Batch", ColumnKind.INTEGER),
    Column("length", "Length", ColumnKind.INTEGER),
    Column("adapters", "Adapters", ColumnKind.LIST, is_wide=True),
    Column("rank", "Rank", ColumnKind.INTEGER),
    Column("targets", "LoRA on", ColumnKind.LIST),
    Column("repeats", "Rounds", ColumnKind.INTEGER, is_wide=True),
    Column(
        "copies", "Sets of weights", ColumnKind.INTEGER, formula="in turns, so that no cache holds them", is_wide=True
    ),
)


@dataclass(frozen=True, slots=True)
class MixedOptions:
    """What is wished for; None and nothing leave the choice to the benchmark.

    batch, length : sequences in a batch, and tokens of each that go through at once; 1 is a step of generation
    counts : numbers of adapters in the batch, each of which divides it
    """

    batch: int = 32
    length: int = 1
    counts: tuple[int, ...] = ()
    layers: int | None = None
    rank: int = 8
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    dtype: str | None = None
    repeats: int | None = None
    device: str = "cpu"
    seed: int = 0


class _Set(NamedTuple):
    """One set of weights: of every number of adapters the stack that has them beside, and the one that merges them."""

    grouped: dict[int, Stack]
    switching: Switching


def bench_mixed(
    base: Base | None = None, *, options: MixedOptions | None = None, observer: Observer | None = None
) -> Report:
    """Measure a batch whose rows belong to several adapters, for several numbers of them.

    Raises
    ------
    CompatibilityError
        what a block of `base` looks like is not known.
    LoraLabError
        a number of adapters does not divide the batch.
    NumericalError
        grouped and merged do not give the same outputs.
    OperationError, CancelledError
        there is no room, or the observer no longer wants it.

    Notes
    -----
    Random weights as of the latency benchmark. Memory for one stack (or several where they fit into a cache), the
    adapted weights once more, and the factors.
    """
    options, observer = options or MixedOptions(), observer or Unwatched()
    measurement = Measurement(options.device)
    setup = setup_of(
        base, options.dtype, device=options.device, seed=options.seed, measurement=measurement, observer=observer
    )
    options = _sensible(options, setup)
    observer.advance(0, 1, "trying one layer")
    course = _course(setup, options)
    copies = sets_of_weights(_weight_bytes(setup, course), options.device)
    setup.require_room(
        course.layers, copies, options.batch * options.length, added_bytes=_factor_bytes(setup, options, course.layers)
    )
    noise = setup.noise()
    sets = [_set_of(setup, options, course.layers, number, noise) for number in range(copies)]
    rounds = Rounds(list(_contestants(setup, options, sets)), measurement.clock, seed=options.seed, observer=observer)
    rounds.total = _contestant_count(options) * (WARM_UPS + course.repeats[0])
    rounds.warm_up(WARM_UPS)
    rounds.measure(course.repeats[0])
    crossing = list(_crossing(rounds, options))
    return measurement.report(
        "bench mixed",
        f"A batch of several adapters, shapes of {setup.model}",
        tables=(
            Table("crossing", "Grouped against switched", _CROSSING, tuple(crossing), key="adapters"),
            Table("rows", "Ways", _ROWS, tuple(_rows(rounds, options)), key="variant"),
        ),
        rounds=[rounds],
        scalars=(_summary(rounds, crossing, sets[0].switching), _workload(setup, options, course, copies)),
        findings=(
            *_findings(setup, options, course, sets[0].switching.note),
            *cache_findings(copies * _weight_bytes(setup, course), options.device),
        ),
    )


def _sensible(options: MixedOptions, setup: Setup) -> MixedOptions:
    """The same with numbers of adapters, in order; or a refusal."""
    require_counts({"the batch": options.batch, "the length": options.length, "layers": options.layers})
    require_counts({"repeats": options.repeats, "the rank": options.rank})
    require_targets(options.targets, options.rank, setup.shape)
    counts = options.counts or tuple(count for count in COUNTS if options.batch % count == 0)
    for count in counts:
        if count < 1 or options.batch % count:
            raise LoraLabError(
                f"{count} adapters do not divide a batch of {options.batch}, expected numbers that do.",
                hint="Like this: --batch 32 --adapters 1,2,4,8",
            )
    return replace(options, counts=tuple(sorted(set(counts))))


def _weight_bytes(setup: Setup, course: Course) -> int:
    """Of one stack."""
    return course.layers * setup.shape.parameters * setup.dtype.itemsize


def _set_of(setup: Setup, options: MixedOptions, layers: int, number: int, noise: Noise) -> _Set:
    """One set of weights in all ways; the first is checked, others go through the same layers."""
    setup.observer.advance(0, 1, "making weights")
    stop_if_cancelled(setup.observer)
    stack = setup.stack(number, layers)
    factors = [factors_for(stack, options.targets, options.rank, noise) for _ in range(max(options.counts))]
    made = _Set({count: grouped(stack, factors[:count]) for count in options.counts}, Switching(stack, factors))
    if not number:
        _check(setup, stack, made.grouped, made.switching)
    return made


def _factor_bytes(setup: Setup, options: MixedOptions, layers: int) -> int:
    """Of the factors of all adapters: as they are stored, as they are multiplied, and stacked for every count."""
    elements = layers * setup.shape.factor_elements(options.targets, options.rank)
    most, itemsize = max(options.counts), setup.dtype.itemsize
    return elements * (most * (itemsize + READY_BYTES) + sum(options.counts) * itemsize)


def _contestant_count(options: MixedOptions) -> int:
    return len(_KINDS) * len(options.counts) + (max(options.counts) > 1)


def _course(setup: Setup, options: MixedOptions) -> Course:
    """Layers and rounds: what a block takes is measured, and what swapping its adapted weights takes."""
    seconds = 0.0
    if max(options.counts) > 1:
        trial = setup.stack(0, 1)
        pair = [factors_for(trial, options.targets, options.rank, setup.noise()) for _ in range(2)]
        switching = Switching(trial, pair)
        seconds = min(setup.measurement.once(partial(switching.to, there)) for there in (1, 0, 1))
    return course_of(
        setup.shape,
        _as_forwards(setup.speed(), seconds, options.counts),
        whole=setup.whole,
        variants=len(_KINDS) * len(options.counts),
        may_cut=setup.may_cut,
        cells=(Cell(options.batch, options.length),),
        layers=options.layers,
        repeats=options.repeats,
    )


def _as_forwards(speed: Speed, swap_seconds: float, counts: Sequence[int]) -> Speed:
    """`speed` as if every way were one forward pass of the whole batch.

    Of N adapters grouped is one pass, switched and merged are N each with as many operations in all, and N − 1 swaps;
    one swap is timed alone.
    """
    ways = len(_KINDS) * len(counts)
    passes = sum(1 + 2 * count for count in counts)
    swaps = sum(count - 1 for count in counts) + 1
    return replace(speed, floor_seconds=(passes * speed.floor_seconds + swaps * swap_seconds) / ways)


def _check(setup: Setup, base: Stack, stacks: dict[int, Stack], switching: Switching) -> None:
    """Grouped gives what each adapter merged gives, and no adapter gives what the base gives."""
    limit = tolerance_of(setup.dtype, setup.shape.inner, len(base.blocks))
    for count, stack in stacks.items():
        x = setup.input(Cell(count, 4))
        switching.to(0)
        right = torch.cat(switching.forward(torch.split(x, 1), is_switching=True))
        with torch.inference_mode():
            distances = relative_distance(stack(x), right), relative_distance(base(x), right)
        if not distances[0] <= limit < distances[1]:
            raise NumericalError(
                f"Of {count} adapters grouped is {distances[0]:.3g} from merged and the base {distances[1]:.3g}, "
                f"expected at most and more than {limit:.3g}.",
                hint="Measure in another --dtype.",
            )
        stop_if_cancelled(setup.observer)


def _contestants(setup: Setup, options: MixedOptions, sets: Sequence[_Set]) -> Iterator[Contestant]:
    """Every way for every number of adapters, and one swap."""
    x = setup.input(Cell(options.batch, options.length))
    turns = _Turns(sets)
    for count in options.counts:
        groups = torch.split(x, options.batch // count)
        start = partial(turns.start, count - 1)
        yield Contestant(f"{GROUPED} {count}", partial(turns.through, count, x), start)
        for kind in (SWITCHED, MERGED):
            work = partial(turns.one_by_one, groups, kind == SWITCHED)
            yield Contestant(f"{kind} {count}", work, start)
    if max(options.counts) > 1:
        yield Contestant(SWAP, turns.swap, partial(turns.start, 1))


class _Turns:
    """Whoever runs next takes the next set of weights, which nobody has touched for longest."""

    def __init__(self, sets: Sequence[_Set]) -> None:
        self._next = itertools.cycle(sets)
        self._now = sets[0]

    def start(self, last: int, _: int) -> None:
        """Take the next set, with the first or the `last` of the adapters merged."""
        self._now = next(self._next)
        if self._now.switching.current not in (0, last):
            self._now.switching.to(0)

    def through(self, count: int, x: torch.Tensor, _: int) -> torch.Tensor:
        """The whole batch, `count` adapters beside the weights."""
        with torch.inference_mode():
            out: torch.Tensor = self._now.grouped[count](x)
        return out

    def one_by_one(self, groups: Sequence[torch.Tensor], is_switching: bool, _: int) -> list[torch.Tensor]:
        """Group after group through merged weights."""
        return self._now.switching.forward(groups, is_switching=is_switching)

    def swap(self, _: int) -> None:
        """One of the first two adapters in place of the other."""
        self._now.switching.to(1 - self._now.switching.current)


def _rows(rounds: Rounds, options: MixedOptions) -> Iterator[dict[str, Any]]:
    tokens = options.batch * options.length
    for count in options.counts:
        for kind in _KINDS:
            spread = spread_of(rounds.samples[f"{kind} {count}"])
            yield {"variant": kind, "adapters": count, "tokens_per_second": tokens / spread.p50, **spread.to_row()}


def _crossing(rounds: Rounds, options: MixedOptions) -> Iterator[dict[str, Any]]:
    """One row for each number of adapters; ratios of what ran in one round."""
    tokens = options.batch * options.length
    swap = spread_of(rounds.samples[SWAP]).p50 if SWAP in rounds.samples else None
    for count in options.counts:
        beside, switched, merged = (rounds.samples[f"{kind} {count}"] for kind in (GROUPED, SWITCHED, MERGED))
        ratio = spread_of([slow / fast for slow, fast in zip(beside, switched, strict=True)])
        saved = spread_of([slow - fast for slow, fast in zip(beside, merged, strict=True)])
        yield {
            "adapters": count,
            "grouped_tokens_per_second": tokens / spread_of(beside).p50,
            "switched_tokens_per_second": tokens / spread_of(switched).p50,
            "ratio": ratio.p50,
            "ratio_low": ratio.low,
            "ratio_high": ratio.high,
            "tokens_to_pay_off": None if swap is None else tokens_until(swap, saved, tokens),
            "faster": SWITCHED if ratio.low > 1.0 else GROUPED if ratio.high < 1.0 else "even",
        }


def _summary(rounds: Rounds, crossing: Sequence[dict[str, Any]], switching: Switching) -> Scalars:
    """Where the two cross."""
    faster = {kind: [row["adapters"] for row in crossing if row["faster"] == kind] for kind in (SWITCHED, GROUPED)}
    values = {
        "swap_seconds": spread_of(rounds.samples[SWAP]).p50 if SWAP in rounds.samples else None,
        "switching_wins_up_to": max(faster[SWITCHED], default=None),
        "grouping_wins_from": min(faster[GROUPED], default=None),
        "relative_drift": switching.drift(),
    }
    return Scalars("summary", "Where they cross", _SUMMARY, values)


def _workload(setup: Setup, options: MixedOptions, course: Course, copies: int) -> Scalars:
    values = {
        "model": setup.model,
        "layers": course.layers,
        "model_layers": setup.whole,
        "dtype": setup.dtype_name,
        "batch": options.batch,
        "length": options.length,
        "adapters": list(options.counts),
        "rank": options.rank,
        "targets": list(options.targets),
        "repeats": course.repeats[0],
        "copies": copies,
    }
    return Scalars("workload", "Workload", _WORKLOAD, values)


def _findings(setup: Setup, options: MixedOptions, course: Course, note: str) -> tuple[Finding, ...]:
    notes = (Finding("note", f"Switching: {note}"),) if note else ()
    if options.layers is not None or not setup.may_cut:
        return notes
    sentence = (
        f"{course.layers} of {setup.whole} layers were chosen to finish in about two minutes, {course.seconds:.0f} s "
        "expected; --layers says otherwise."
    )
    return (Finding("chosen", sentence), *notes)
