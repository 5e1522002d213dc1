"""The latency benchmark: table 1 of the LoRA paper, on the device and in the shapes that are asked for."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import torch

from lora_lab.benchmarks.copying import sets_of_weights
from lora_lab.benchmarks.latency import adapters
from lora_lab.benchmarks.latency.adapters import BASE, HOULSBY, MERGED, PFEIFFER, UNMERGED, VARIANTS
from lora_lab.benchmarks.latency.blocks import GPT2_MEDIUM, GPT2_MEDIUM_LAYERS, BlockShape, Noise, Stack, stack_of
from lora_lab.benchmarks.latency.checking import faults_of
from lora_lab.benchmarks.latency.grid import WARM_UPS, Cell, Course, Speed, block_flops, course_of
from lora_lab.benchmarks.latency.published import TABLE_1, bottleneck_width
from lora_lab.benchmarks.latency.shapes import block_shape_of, dtype_of
from lora_lab.benchmarks.latency.table import rows_table, workload_scalars
from lora_lab.benchmarks.measurement import Measurement
from lora_lab.benchmarks.memory import available_bytes
from lora_lab.benchmarks.rounds import Contestant, Rounds
from lora_lab.benchmarks.spread import spread_of
from lora_lab.domain.figures import size
from lora_lab.domain.progress import Unwatched, stop_if_cancelled
from lora_lab.domain.report import Finding
from lora_lab.errors import LoraLabError, OperationError, quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from lora_lab.domain.base import Base
    from lora_lab.domain.progress import Observer
    from lora_lab.domain.report import Report

DTYPES: Final = ("float32", "float16", "bfloat16")
_ONE: Final = Cell(1, 1)
_PILOT: Final = Cell(1, 512)
_PILOT_RUNS: Final = 3
# Tensors of tokens × (hidden or inner) that are alive at once in one block, about.
_ALIVE: Final = 6


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

    model: str
    shape: BlockShape
    whole: int
    dtype: torch.dtype
    options: LatencyOptions
    measurement: Measurement
    observer: Observer
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
        return self.course.layers * self.shape.parameters * self.dtype.itemsize

    def say(self, what: str) -> None:
        stop_if_cancelled(self.observer)
        self.observer.advance(self.done, max(1, self.total), what)

    def width(self, cell: Cell) -> int:
        return self.options.bottleneck or bottleneck_width(self.shape.hidden, cell)


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
    shape, whole = (GPT2_MEDIUM, GPT2_MEDIUM_LAYERS) if base is None else block_shape_of(base)
    dtype = options.dtype or ("float32" if base is None else dtype_of(base))
    model = "GPT-2 medium" if base is None else base.name
    _require_sense(options, shape, dtype)
    bench = _Bench(model, shape, whole, getattr(torch, dtype), options, measurement, observer)
    bench.say("trying one layer")
    bench.course = _course(bench)
    _require_room(bench)
    bench.copies = sets_of_weights(bench.weight_bytes, options.device)
    noise = Noise(options.device, bench.dtype, options.seed + 1)
    sets = [_with_lora(bench, number, noise) for number in range(bench.copies)]
    for cell, repeats in zip(bench.course.cells, bench.course.repeats, strict=True):
        _measure(bench, sets, noise, cell, repeats)
    return measurement.report(
        "bench latency",
        f"Forward pass, shapes of {model}",
        tables=(rows_table(bench.rows),),
        rounds=bench.rounds,
        scalars=(workload_scalars(shape, _settings(bench)),),
        findings=bench.findings,
    )


def _course(bench: _Bench) -> Course:
    """What to run; the speed of one layer is measured, and what was chosen is said."""
    options = bench.options
    may_cut = not options.device.startswith("cuda")
    speed = _pilot(bench)
    course = course_of(
        bench.shape,
        speed,
        whole=bench.whole,
        variants=len(VARIANTS),
        may_cut=may_cut,
        cells=options.cells,
        layers=options.layers,
        repeats=options.repeats,
    )
    if may_cut and not (options.cells and options.layers):
        grid = ", ".join(map(str, course.cells))
        bench.findings.append(
            Finding(
                "chosen",
                f"{course.layers} of {bench.whole} layers and the grid {grid} were chosen to finish in about two "
                f"minutes on this {'processor' if options.device == 'cpu' else 'device'}, {course.seconds:.0f} s "
                "expected; --layers and --grid say otherwise.",
            )
        )
    return course


def _pilot(bench: _Bench) -> Speed:
    """Seconds of one block for one token, and for each operation more."""
    stack = _new_stack(bench, 0, 1)
    floor, longer = (_best_seconds(bench, stack, cell) for cell in (_ONE, _PILOT))
    flops = block_flops(bench.shape, _PILOT) - block_flops(bench.shape, _ONE)
    return Speed(floor, max(0.0, longer - floor) / flops)


@torch.inference_mode()
def _best_seconds(bench: _Bench, stack: Stack, cell: Cell) -> float:
    x = _input(bench, cell)
    times = [bench.measurement.once(lambda: stack(x)) for _ in range(_PILOT_RUNS)]
    stop_if_cancelled(bench.observer)
    return min(times)


def _with_lora(bench: _Bench, number: int, noise: Noise) -> dict[str, Stack]:
    """The base and LoRA on it, over one set of weights."""
    bench.say("making weights")
    stack = _new_stack(bench, number, bench.course.layers)
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
    x = _input(bench, cell)

    def step(variant: str) -> Callable[[int], object]:
        return lambda _: whole[next(turn) % len(whole)][variant](x)

    sound = [variant for variant in VARIANTS if variant not in bench.faulty]
    contestants = [Contestant(f"{variant} {cell}", step(variant)) for variant in sound]
    rounds = Rounds(contestants, bench.measurement.clock, seed=bench.options.seed, observer=bench.observer)
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
    published = TABLE_1.get(cell) if bench.shape == GPT2_MEDIUM else None
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
            "overhead": spread.p50 / spread_of(base).p50 - 1.0,
            "overhead_low": paired.low,
            "overhead_high": paired.high,
            "published_overhead": None if published is None else published.overhead(variant),
            "published_seconds": published.seconds.get(variant) if published is not None and is_whole else None,
            "parameters": 0 if variant == MERGED else added,
        }


def _new_stack(bench: _Bench, number: int, layers: int) -> Stack:
    options = bench.options
    return stack_of(bench.shape, layers, device=options.device, dtype=bench.dtype, seed=options.seed + number)


def _input(bench: _Bench, cell: Cell) -> torch.Tensor:
    x = torch.empty((cell.batch, cell.length, bench.shape.hidden), device=bench.options.device, dtype=bench.dtype)
    Noise(bench.options.device, bench.dtype, bench.options.seed).fill(x, 1.0)
    return x


def _settings(bench: _Bench) -> dict[str, Any]:
    course, options = bench.course, bench.options
    return {
        "model": bench.model,
        "layers": course.layers,
        "model_layers": bench.whole,
        "dtype": str(bench.dtype).removeprefix("torch."),
        "rank": options.rank,
        "targets": list(options.targets),
        "bottlenecks": [bench.width(cell) for cell in course.cells],
        "grid": [str(cell) for cell in course.cells],
        "repeats": list(course.repeats),
        "copies": bench.copies,
    }


def _require_sense(options: LatencyOptions, shape: BlockShape, dtype: str) -> None:
    """Refuse what no stack of this shape can be measured with."""
    counts = {"layers": options.layers, "repeats": options.repeats, "the bottleneck": options.bottleneck}
    for name, count in {**counts, "the rank": options.rank}.items():
        if count is not None and count < 1:
            raise LoraLabError(f"For {name} bench latency got {count}, expected at least 1.")
    there = [target for target in adapters.TARGETS if shape.is_gated or target != "gate_proj"]
    for target in options.targets:
        if target not in there:
            raise LoraLabError(f"A block has no layer {quoted(target)}, expected some of: {', '.join(there)}.")
    if not options.targets or len(set(options.targets)) < len(options.targets):
        raise LoraLabError(f"LoRA got {', '.join(options.targets) or 'nothing'} to adapt, expected layers, each once.")
    if dtype not in DTYPES:
        raise LoraLabError(f"The dtype is {quoted(dtype)}, expected one of: {', '.join(DTYPES)}.")


def _require_room(bench: _Bench) -> None:
    """Refuse before anything is made that would not fit."""
    copies = sets_of_weights(bench.weight_bytes, bench.options.device)
    largest = max(cell.tokens for cell in bench.course.cells)
    alive = _ALIVE * largest * max(bench.shape.hidden, bench.shape.inner) * bench.dtype.itemsize
    needed = 2 * copies * bench.weight_bytes + alive
    there = available_bytes(bench.options.device)
    if there is not None and there < needed:
        raise OperationError(
            f"{bench.course.layers} layers and {largest} tokens need {size(needed)} of memory on "
            f"{bench.options.device}, got {size(there)}.",
            hint="Give fewer --layers or a smaller --grid.",
        )
