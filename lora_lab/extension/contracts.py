"""The typed values that hooks return.

A contribution declares what it is (``id``, ``title``, ``reference``) and what it takes (``parameters``); every shell
renders the declaration. It never knows who shows its result.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from lora_lab.domain.progress import Observer, Unwatched

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    import torch

    from lora_lab.domain.adapter import Adapter, Delta
    from lora_lab.domain.base import Base
    from lora_lab.domain.parameters import Parameter
    from lora_lab.domain.report import Report
    from lora_lab.domain.tensors import TensorRef


class Need(StrEnum):
    """Whether something has to be given."""

    NO = "no"
    OPTIONAL = "optional"
    REQUIRED = "required"


@dataclass(frozen=True, slots=True)
class Factors:
    """The matrices of one delta: ΔW = scaling · lora_B @ lora_A.

    Convolutions are flattened and grouped ones made block diagonal, an expert is cut out, KaSA's diagonal is
    multiplied into lora_A, an embedding's and a fan_in_fan_out module's transposition is left to ``is_transposed``:
    ΔW as the base stores it is then (lora_B @ lora_A)ᵀ, which has the same singular values. Rows of lora_B are outputs
    of the layer and columns of lora_A its inputs either way.

    lora_A : (rank, in), float, as stored or converted from fp8
    lora_B : (out, rank), float
    """

    lora_A: torch.Tensor
    lora_B: torch.Tensor
    scaling: float
    is_transposed: bool = False


class Reader(Protocol):
    """Reads weights on demand."""

    def factors(self, delta: Delta) -> Factors:
        """The two matrices of `delta`, checked to be finite; NumericalError names the module otherwise."""

    def factors_of(self, deltas: Sequence[Delta]) -> Iterator[tuple[Delta, Factors]]:
        """The same for many, in order, each file opened once."""

    def tensor(self, ref: TensorRef) -> torch.Tensor:
        """One tensor as stored, in memory that nobody else holds."""

    def rows_of(self, ref: TensorRef) -> AbstractContextManager[Callable[[int, int], torch.Tensor]]:
        """Rows of a tensor too large to be held, from the first to before the second number, as stored.

        What is not a matrix is (shape[0], everything else). The function may be called from several threads.
        """


class ArrayStore(Protocol):
    """Keeps what is dear to compute from a base and does not change with the adapter: decompositions.

    Anything may be forgotten at any time; a damaged entry counts as forgotten. Nothing here raises.
    """

    def get(self, key: str) -> dict[str, torch.Tensor] | None:
        """What was put under `key`, on the processor; None when there is nothing."""

    def put(self, key: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Keep `tensors` under `key`, as long as there is room."""

    @property
    def size_bytes(self) -> int:
        """Bytes that are kept now."""

    @property
    def limit_bytes(self) -> int:
        """Bytes that may be kept."""


@dataclass(frozen=True, slots=True)
class AnalysisContext:
    """Everything an analysis works on."""

    subjects: tuple[Adapter | Base, ...]
    reader: Reader
    base: Base | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    modules: tuple[str, ...] = ()  # globs; empty means all
    device: str = "cpu"  # resolved: cpu, cuda:0, mps
    seed: int = 0
    observer: Observer = field(default_factory=Unwatched)
    store: ArrayStore | None = None  # None remembers nothing


@runtime_checkable
class Analysis(Protocol):
    """Adapters, and perhaps a base, in; a Report out."""

    @property
    def id(self) -> str:
        """Short, lower case: what ``analyze ID`` takes."""

    @property
    def title(self) -> str:
        """Name on screen."""

    @property
    def summary(self) -> str:
        """One sentence."""

    @property
    def reference(self) -> str:
        """Paper or other source of the formula; empty when it is ours."""

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """What it takes beyond its inputs."""

    @property
    def subjects(self) -> tuple[int, int]:
        """Fewest and most inputs."""

    @property
    def takes_models(self) -> bool:
        """Whether an input may be a full checkpoint."""

    @property
    def base(self) -> Need:
        """Whether it needs the base model."""

    def run(self, context: AnalysisContext) -> Report:
        """Do it."""


@runtime_checkable
class OnProcessor(Protocol):
    """An analysis, besides, that computes on the processor whatever there is: no device is looked for, which takes
    seconds, and one that is asked for is told to be of no use here."""

    @property
    def is_on_processor(self) -> bool:
        """True."""


class Recognition(StrEnum):
    """What a format makes of a path, from names and a few bytes."""

    NO = "no"
    READABLE = "readable"
    NAMED = "named"  # known by name, not readable by this format


@runtime_checkable
class AdapterFormat(Protocol):
    """A file format that holds adapters."""

    @property
    def id(self) -> str:
        """Short, lower case."""

    @property
    def title(self) -> str:
        """Name on screen."""

    def recognise(self, path: Path) -> Recognition:
        """Look at names and the first bytes only; never raise."""

    def read(self, path: Path, options: ReadOptions) -> Adapter:
        """Read headers and configuration; LoraLabError when it cannot be."""


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """What a person allows beyond the default, each by a word of its own."""

    locator: str = ""
    name: str = ""
    allow_pickle: bool = False
    alpha: float | None = None  # for a file that does not say
    follow_symlinks: bool = False


@dataclass(frozen=True, slots=True)
class MergeContext:
    """What a method knows besides the factors of one module.

    rank : most that the result's may be; None asks for the whole, or where that has full rank for the sum of the ranks
    energy : share in (0, 1] of ‖D‖² that the result keeps, by the smallest rank that does and `rank` allows
    """

    parameters: Mapping[str, Any] = field(default_factory=dict)  # a value for each that the method declares
    rank: int | None = None
    energy: float | None = None
    module: str = "ΔW"  # its path, for sentences
    seed: int = 0
    device: str = "cpu"
    observer: Observer = field(default_factory=Unwatched)  # to be asked now and then by what takes long


@dataclass(frozen=True, slots=True)
class Combination:
    """What a method makes of one module: factors of D, or of its best approximation.

    The factors have the shape and orientation of the inputs', whatever their rank: 0 where nothing is left. What is not
    so, or a norm or error that is no finite number, ends the combination with the name of the plugin.

    norm : ‖D‖_F
    error : ‖D − ΔW‖_F of these factors, before they are rounded to the type that they are stored in
    """

    factors: Factors  # float64, scaling 1
    norm: float
    error: float = 0.0


@runtime_checkable
class MergeMethod(Protocol):
    """One update out of several, module by module.

    A method sees only the adapters that have the module, at least one, and all of one shape and orientation, whatever
    their ranks; strengths are finite, of any sign, and may be zero. The result depends on nothing but its arguments:
    not on threads, nor on the order of modules. :mod:`lora_lab.linalg.combining` puts factors side by side, and cuts a
    product to the rank and the energy of the context, with the norm and the error to report. One that needs no factors
    is a :class:`~lora_lab.extension.changes.ChangeMethod` too.
    """

    @property
    def id(self) -> str:
        """Short, lower case: what ``combine --method`` takes."""

    @property
    def title(self) -> str:
        """Name on screen."""

    @property
    def summary(self) -> str:
        """One sentence."""

    @property
    def reference(self) -> str:
        """Paper or other source of the formula; empty when it is ours."""

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """What it takes beyond inputs, strengths, rank, energy and seed."""

    @property
    def is_low_rank(self) -> bool:
        """Whether D has at most the sum of the ranks, so that without rank and energy the result is all of it."""

    def combine(self, factors: Sequence[Factors], strengths: Sequence[float], context: MergeContext) -> Combination:
        """The combination of one module; called from several threads at once."""


@dataclass(frozen=True, slots=True)
class SwapFactors:
    """One adapter's part in one weight, oriented as the weight is stored: ΔW = scaling · lora_B @ lora_A.

    lora_A : (rank, in), as stored, on the device
    lora_B : (out, rank)
    magnitude : of DoRA, W′ = m ⊙ (W + ΔW)/‖W + ΔW‖: (out,), or (in,) with `is_by_column`; None without
    """

    lora_A: torch.Tensor
    lora_B: torch.Tensor
    scaling: float
    magnitude: torch.Tensor | None = None
    is_by_column: bool = False


@dataclass(frozen=True, slots=True)
class SwapModule:
    """One weight that adapters change.

    weight : (out, in), what the model computes with, on the device; the base's at first, and changed in place
    adapters : for every adapter its parts, none where it leaves the weight alone
    """

    name: str
    weight: torch.Tensor
    adapters: tuple[tuple[SwapFactors, ...], ...]


@dataclass(frozen=True, slots=True)
class SwapScene:
    """The weights of one model and the adapters that take turns in them.

    base_rows : reads rows of the base's own weight from its file again, given the module's place in `modules`, the
        first row and the one before which it ends; as stored, on the processor; called from several threads
    """

    modules: tuple[SwapModule, ...]
    base_rows: Callable[[int, int, int], torch.Tensor]
    device: str  # resolved: cpu, cuda:0, mps


@runtime_checkable
class SwapStrategy(Protocol):
    """One way to go from a model with adapter A to the same model with adapter B."""

    @property
    def id(self) -> str:
        """Short, lower case: what ``bench swap --strategies`` takes."""

    @property
    def title(self) -> str:
        """Name on screen."""

    @property
    def summary(self) -> str:
        """One sentence."""

    @property
    def is_exact(self) -> bool:
        """Whether it promises, bit for bit, the base with B merged, however often it is done."""

    def prepare(self, scene: SwapScene, first: int) -> Swapper:
        """Put adapter `first` in and keep whatever swaps need; not timed.

        CompatibilityError says, in one sentence, why it cannot be done this way with these adapters.
        """


class Swapper(Protocol):
    """A strategy at work on one scene; all modules at once, so that it may batch them as it likes."""

    @property
    def kept_bytes(self) -> int:
        """Memory held besides the weights and the factors."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences on how it works here, such as which kernel was chosen."""

    def moved_bytes(self, old: int, new: int) -> int:
        """Bytes that a swap reads and writes at least, those of the factors included."""

    def swap(self, old: int, new: int) -> None:
        """Take adapter `old` out and put `new` in; on a device that queues its work it need not be finished."""

    def restore(self, old: int) -> None:
        """Give the base back, as well as this way can; nothing is in use afterwards."""

    def beside(self, module: int) -> tuple[SwapFactors, ...] | None:
        """What is applied beside the weight of a module instead of being merged into it; None where it is merged."""


@runtime_checkable
class Exporter(Protocol):
    """A Report as a file of one kind."""

    @property
    def id(self) -> str:
        """Short, lower case: what ``--format`` takes."""

    @property
    def title(self) -> str:
        """Name on screen."""

    @property
    def suffix(self) -> str:
        """File ending with its dot."""

    def export(self, report: Report) -> bytes:
        """The whole file."""


@dataclass(frozen=True, slots=True)
class CommandSpec:
    """A command of the command line, declared without the library that parses it."""

    name: str
    summary: str
    run: CommandFunction
    parameters: tuple[Parameter, ...] = ()
    takes_sources: bool = True


class CommandFunction(Protocol):
    """What a plugin's command does; the Report is printed, or dumped with ``--json``."""

    def __call__(self, session: Any, sources: Sequence[str], parameters: Mapping[str, Any]) -> Report:
        """`session` is the lora_lab.Session of this call."""
