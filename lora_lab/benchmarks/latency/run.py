"""The latency benchmark: table 1 of the LoRA paper, on the device and in the shapes that are asked for."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from lora_lab.benchmarks.copying import cache_findings, sets_of_weights
from lora_lab.benchmarks.latency import adapters
from lora_lab.benchmarks.latency.adapters import BASE, HOULSBY, MERGED, PFEIFFER, UNMERGED, VARIANTS
from lora_lab.benchmarks.latency.blocks import GPT2_MEDIUM, GPT2_MEDIUM_LAYERS
from lora_lab.benchmarks.latency.checking import faults_of
from lora_lab.benchmarks.latency.grid import WARM_UPS, Cell, Course, course_of
from lora_lab.benchmarks.latency.published import TABLE_1, bottleneck_width
from lora_lab.benchmarks.latency.setup import READY_BYTES, Setup, require_counts, require_targets, setup_of
from lora_lab.benchmarks.latency.table import rows_table, workload_scalars
from lora_lab.benchmarks.measurement import Measurement
from lora_lab.benchmarks.rounds import Contestant, Rounds
from lora_lab.benchmarks.spread import spread_of
from lora_lab.domain.progress import Unwatched, stop_if_cancelled
from lora_lab.domain.report import Finding
from lora_lab.errors import OperationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from lora_lab.benchmarks.latency.blocks import Noise, Stack
    from lora_lab.domain.base import Base
    from lora_lab.domain.progress import Observer
    from lora_lab.domain.report import Report


@dataclass(frozen=True, slots=True)
class LatencyOptions:
    """What is wished for; None and nothing leave the choice to the benchmark.

    cells : batch × length; none means the paper's, or what two minutes are enough for
    layers : of the stack
    targets : linear layers of a block that LoRA adapts
    bottleneck : width of one bottleneck a block; None means the share that the paper's take
    dtype : float32, float16 or bfloat16; None means the base's, float32 without one
    repeats : rounds that are kept, of each cell
    """

    cells: tuple[Cell, ...] = ()
    layers: int | None = None
    rank: int = 8
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    bottleneck: int | None = None
    dtype: str | None = None
    repeats: int | None = None
    device: str = "cpu"
    seed: int = 0


@dataclass(slots=True)
class _Bench:
    """One run."""

    setup: Setup
    options: LatencyOptions
    course: Course = field(default_factory=lambda: Course((), 0, ()))
    copies: int = 1
    rounds: list[Rounds] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    faulty: set[str] = field(default_factory=set)

    @property
    def total(self) -> int:
        return sum(len(VARIANTS) * (WARM_UPS + count) for count in self.course.repeats)

    @property
    def done(self) -> int:
        return self.rounds[-1].done if self.rounds else 0

    @property
    def weight_bytes(self) -> int:
        """Of one stack."""
        return self.course.layers * self.setup.shape.parameters * self.setup.dtype.itemsize

    @property
    def added_bytes(self) -> int:
        """Of the adapters of one stack: factors as they are multiplied, and bottlenecks of both kinds."""
        shape, options = self.setup.shape, self.options
        factors = shape.factor_elements(options.targets, options.rank)
        width = max(self.width(cell) for cell in self.course.cells)
        bottlenecks = 2 * 2 * shape.hidden * width
        itemsize = self.setup.dtype.itemsize
        return self.course.layers * (factors * (itemsize + READY_BYTES) + bottlenecks * itemsize)

    def say(self, what: str) -> None:
        stop_if_cancelled(self.setup.observer)
        self.setup.observer.advance(self.done, max(1, self.total), what)

    def width(self, cell: Cell) -> int:
        return self.options.bottleneck or bottleneck_width(self.setup.shape.hidden, cell)


def bench_latency(
    base: Base | None = None, *, options: LatencyOptions | None = None, observer: Observer | None = None
) -> Report:
    """Measure one forward pass through a stack of decoder blocks: as it is, with LoRA, and with bottleneck adapters.

    Weights are random and of the shapes of `base`, or of GPT-2 medium. All variants share the parameters that none of
    them changes, take turns in every round, and are checked before any of them gets a time.

    Raises
    ------
    CompatibilityError
        what a block of `base` looks like is not known.
    OperationError
        there is no room.
    CancelledError
        the observer no longer wants it.

    Notes
    -----
    The blocks are plain ones of the base's sizes: no embedding, no head, no positions, no window. Memory for one stack
    (or several where they fit into a cache), the adapted weights once more, and the activations of the largest cell.
    """
    options, observer = options or LatencyOptions(), observer or Unwatched()
    measurement = Measurement(options.device)
    counts = {"layers": options.layers, "repeats": options.repeats, "the bottleneck": options.bottleneck}
    require_counts({**counts, "the rank": options.rank})
    setup = setup_of(
        base, options.dtype, device=options.device, seed=options.seed, measurement=measurement, observer=observer
    )
    require_targets(options.targets, options.rank, setup.shape)
    bench = _Bench(setup, options)
    bench.say("trying one layer")
    bench.course = _course(bench)
    bench.copies = sets_of_weights(bench.weight_bytes, options.device)
    bench.findings += cache_findings(bench.copies * bench.weight_bytes, options.device)
    setup.require_room(
        bench.course.layers,
        bench.copies,
        max(cell.tokens for cell in bench.course.cells),
        added_bytes=bench.added_bytes,
    )
    noise = setup.noise()
    sets = [_with_lora(bench, number, noise) for number in range(bench.copies)]
    for cell, repeats in zip(bench.course.cells, bench.course.repeats, strict=True):
        _measure(bench, sets, noise, cell, repeats)
    return measurement.report(
        "bench latency",
        f"Forward pass, shapes of {setup.model}",
        tables=(rows_table(bench.rows),),
        rounds=bench.rounds,
        scalars=(workload_scalars(setup.shape, _settings(bench)),),
        findings=bench.findings,
    )


def _course(bench: _Bench) -> Course:
    """What to run; the speed of one layer is measured, and what was chosen is said."""
    setup, options = bench.setup, bench.options
    course = course_of(
        setup.shape,
        setup.speed(),
        whole=setup.whole,
        variants=len(VARIANTS),
        may_cut=setup.may_cut,
        cells=options.cells,
        layers=options.layers,
        repeats=options.repeats,
    )
    chosen = {}
    if not options.layers:
        chosen["--layers"] = f"{course.layers} of {setup.whole} layers"
    if not options.cells:
        chosen["--grid"] = f"the grid {', '.join(map(str, course.cells))}"
    if setup.may_cut and chosen:
        bench.findings.append(
            Finding(
                "chosen",
                f"{' and '.join(chosen.values())} were chosen to finish in about two minutes on this "
                f"{'processor' if options.device == 'cpu' else 'device'}, {course.seconds:.0f} s expected; "
                f"{' and '.join(chosen)} {'say' if len(chosen) > 1 else 'says'} otherwise.",
            )
        )
    return course


def _with_lora(bench: _Bench, number: int, noise: Noise) -> dict[str, Stack]:
    """The base and LoRA on it, over one set of weights."""
    bench.say("making weights")
    stack = bench.setup.stack(number, bench.course.layers)
    factors = adapters.factors_for(stack, bench.options.targets, bench.options.rank, noise)
    made = {BASE: stack, MERGED: adapters.merged(stack, factors), UNMERGED: adapters.unmerged(stack, factors)}
    if not number:
        bench.say("checking")
        _check(bench, made, factors)
    return made


def _with_bottlenecks(
    bench: _Bench, made: Mapping[str, Stack], number: int, cell: Cell, noise: Noise
) -> dict[str, Stack]:
    """The same with bottlenecks as wide as they are in `cell`."""
    width = bench.width(cell)
    added = {
        PFEIFFER: adapters.with_bottlenecks(made[BASE], width, noise, is_double=False),
        HOULSBY: adapters.with_bottlenecks(made[BASE], width, noise, is_double=True),
    }
    if not number:
        _check(bench, {BASE: made[BASE], **added}, ())
    for stack in added.values():
        adapters.fill_bottlenecks(stack, noise)
    return {**made, **added}


def _check(
    bench: _Bench, made: Mapping[str, Stack], factors: Sequence[dict[str, tuple[torch.Tensor, torch.Tensor]]]
) -> None:
    """Leave out what is wrong, and say so; other sets of weights go through the same layers."""
    for name, finding in faults_of(made, factors, bench.options.seed):
        bench.faulty.add(name)
        bench.findings.append(finding)


def _measure(bench: _Bench, sets: Sequence[dict[str, Stack]], noise: Noise, cell: Cell, repeats: int) -> None:
    """Put bottlenecks beside the rest, check them, and run all in turns."""
    bench.say(f"checking {cell}")
    whole = [_with_bottlenecks(bench, made, number, cell, noise) for number, made in enumerate(sets)]
    turn = itertools.count()  # whoever runs next takes the next set, which nobody has touched for longest
    x = bench.setup.input(cell)

    def step(variant: str) -> Callable[[int], object]:
        return lambda _: whole[next(turn) % len(whole)][variant](x)

    sound = [variant for variant in VARIANTS if variant not in bench.faulty]
    contestants = [Contestant(f"{variant} {cell}", step(variant)) for variant in sound]
    rounds = Rounds(contestants, bench.setup.measurement.clock, seed=bench.options.seed, observer=bench.setup.observer)
    rounds.done, rounds.total = bench.done, bench.total
    try:
        with torch.inference_mode():
            rounds.warm_up(WARM_UPS)
            rounds.measure(repeats)
    except torch.OutOfMemoryError as error:
        raise OperationError(
            f"There is no room for a batch of {cell} on {bench.options.device}.", hint="Give a smaller --grid."
        ) from error
    bench.rounds.append(rounds)
    parameters = {variant: adapters.own_parameters(whole[0][variant], sets[0][BASE]) for variant in sound}
    bench.rows += _rows(bench, rounds, cell, parameters)


def _rows(bench: _Bench, rounds: Rounds, cell: Cell, parameters: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    """One row for each variant that was measured."""
    published = TABLE_1.get(cell) if bench.setup.shape == GPT2_MEDIUM else None
    base = rounds.samples.get(f"{BASE} {cell}", [])
    for variant, added in parameters.items():
        samples = rounds.samples[f"{variant} {cell}"]
        spread = spread_of(samples)
        paired = spread_of([one / other - 1.0 for one, other in zip(samples, base, strict=True)])
        is_whole = published is not None and bench.course.layers == GPT2_MEDIUM_LAYERS
        yield {
            "batch": cell.batch,
            "length": cell.length,
            "variant": variant,
            **spread.to_row(),
            "overhead": paired.p50,
            "overhead_low": paired.low,
            "overhead_high": paired.high,
            "published_overhead": None if published is None else published.overhead(variant),
            "published_seconds": published.seconds.get(variant) if published is not None and is_whole else None,
            "parameters": 0 if variant == MERGED else added,
        }


def _settings(bench: _Bench) -> dict[str, Any]:
    course, options = bench.course, bench.options
    return {
        "model": bench.setup.model,
        "layers": course.layers,
        "model_layers": bench.setup.whole,
        "dtype": bench.setup.dtype_name,
        "rank": options.rank,
        "targets": list(options.targets),
        "bottlenecks": [bench.width(cell) for cell in course.cells],
        "grid": [str(cell) for cell in course.cells],
        "repeats": list(course.repeats),
        "copies": bench.copies,
    }
