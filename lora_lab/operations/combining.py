"""Several adapters brought together module by module: which of them has what, and the factors that come out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

import torch

from lora_lab.analyses.scope import refuse, selected
from lora_lab.analyses.summaries import counted, summarised
from lora_lab.domain.adapter import DeltaKind
from lora_lab.domain.dtypes import DType
from lora_lab.domain.modules import natural_key
from lora_lab.domain.progress import stop_if_cancelled
from lora_lab.errors import AdapterError, CompatibilityError, LoraLabError, NumericalError, quoted
from lora_lab.extension.contracts import MergeContext
from lora_lab.linalg.combining import budget_ranks, rounding_error
from lora_lab.linalg.side_by_side import side_by_side
from lora_lab.linalg.spectra import factored_singular_values
from lora_lab.operations.execution import torch_type

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from lora_lab.domain.adapter import Adapter, Delta
    from lora_lab.domain.progress import Observer
    from lora_lab.extension.contracts import Combination, Factors, MergeMethod, Reader
    from lora_lab.operations.combine_options import CombineOptions

T = TypeVar("T")
_NESTED: Final = ".base_layer."
# What changes the weights besides ΔW, and what several adapters cannot have in common.
_BESIDE: Final = {
    "dora": "the magnitudes change the whole weight, which is known with the base alone",
    "kasa": "the base loses its smallest singular values when it is loaded",
}
_OF_ONE: Final = {
    "alora": "ΔW acts only after the invocation tokens",
    "layer_replication": "layers are counted in a lengthened model",
    "weight_tying": "layers that the base ties share what is trained",
}


@dataclass(frozen=True, slots=True)
class Joint:
    """One module with the adapters that have it.

    places : of the adapters, in their order
    """

    module: str
    places: tuple[int, ...]
    deltas: tuple[Delta, ...]

    @property
    def first(self) -> Delta:
        """The others have its kind, shape and orientation."""
        return self.deltas[0]

    def delta_of(self, place: int) -> Delta:
        """That of one adapter."""
        return self.deltas[self.places.index(place)]

    @property
    def cost(self) -> int:
        """Parameters that one more rank takes."""
        return int(math.prod(self.first.lora_A.shape[1:]) + self.first.lora_B.shape[0])


class Joined(NamedTuple):
    """One module of the result as it is written.

    lora_A : (r, in), lora_B : (out, r), of the type of the output; ΔW = lora_B @ lora_A, or its transpose
    bias : (out,) of the output's type, added to the base's; None where no adapter has one
    norm : ‖D‖_F of what the method says
    error : ‖D − ΔW‖_F, rounding to the type included
    """

    joint: Joint
    lora_A: torch.Tensor
    lora_B: torch.Tensor
    bias: torch.Tensor | None
    norm: float
    error: float

    @property
    def rank(self) -> int:
        """At least 1, since no file holds factors of rank 0."""
        return int(self.lora_A.shape[0])

    @property
    def relative_error(self) -> float | None:
        """Of the whole; None of a zero."""
        return self.error / self.norm if self.norm > 0.0 else None


def joints_of(adapters: Sequence[Adapter], options: CombineOptions) -> list[Joint]:
    """Find every module and who has it, in natural order.

    Raises
    ------
    AdapterError
        an adapter does what no pair of factors says.
    CompatibilityError
        two adapters have a module in different shapes.
    """
    found: dict[str, list[tuple[int, Delta]]] = {}
    for place, adapter in enumerate(adapters):
        _require_factors(adapter, is_alone=len(adapters) == 1)
        for delta in selected(adapter, options.modules):
            found.setdefault(delta.module, []).append((place, delta))
    joints = []
    for module in sorted(found, key=natural_key):
        places, deltas = zip(*found[module], strict=True)
        _require_alike(adapters, module, places, deltas)
        joints.append(Joint(module, places, deltas))
    if not joints:
        raise AdapterError("The adapters have no factors, expected at least one module.")
    return joints


def _require_factors(adapter: Adapter, *, is_alone: bool) -> None:
    refuse(adapter)
    wrong = _BESIDE if is_alone else {**_BESIDE, **_OF_ONE}
    for feature in adapter.features:
        if feature.id in wrong:
            raise AdapterError(
                f"{quoted(adapter.name)} cannot be combined: {feature.title}, {wrong[feature.id]}.",
                hint="lora-lab merge adds it to its base, where that is known."
                if feature.id == "dora"
                else "Leave it as it is.",
            )
    for what, is_so in (
        ("experts of a mixture, whose factors are stored in one", lambda delta: delta.kind is DeltaKind.EXPERTS),
        ("grouped convolutions, whose sum has no such factors", lambda delta: delta.groups > 1),
        ("modules inside of another wrapped module", lambda delta: _NESTED in delta.lora_A.name),
    ):
        modules = [delta.module for delta in adapter.deltas if is_so(delta)]
        if modules:
            raise AdapterError(
                f"{quoted(adapter.name)} has {what}: {summarised(map(quoted, modules))}; combine knows linear layers, "
                "embeddings and plain convolutions.",
                hint="--module GLOB does not help here; merge such an adapter into its base instead.",
            )


def _require_alike(adapters: Sequence[Adapter], module: str, places: Sequence[int], deltas: Sequence[Delta]) -> None:
    first = deltas[0]
    for place, delta in zip(places, deltas, strict=True):
        if (delta.shape, delta.kind, delta.fan_in_fan_out) != (first.shape, first.kind, first.fan_in_fan_out):
            told = [
                f"{one.kind.value} {list(one.shape)}{' with fan_in_fan_out' if one.fan_in_fan_out else ''} in "
                f"{quoted(adapters[at].name)}"
                for at, one in ((places[0], first), (place, delta))
            ]
            raise CompatibilityError(
                f"ΔW of {quoted(module)} is {told[0]} and {told[1]}, expected one shape.",
                hint="The adapters belong to different bases; lora-lab diff shows every module.",
            )


def widest(joints: Sequence[Joint]) -> DType:
    """The type that holds the factors of all of them: of bfloat16 and float16, and of what has 8 bits, float32."""
    found = {ref.dtype for joint in joints for delta in joint.deltas for ref in (delta.lora_A, delta.lora_B)}
    for dtype in (DType.F64, DType.F32):
        if dtype in found:
            return dtype
    return found.pop() if found in ({DType.BF16}, {DType.F16}) else DType.F32


@dataclass(frozen=True)
class Combiner:
    """Runs one method over many modules."""

    adapters: Sequence[Adapter]
    joints: Sequence[Joint]
    method: MergeMethod
    options: CombineOptions
    parameters: Mapping[str, object]  # of the method, every one
    reader: Reader
    observer: Observer

    def run(self) -> Iterator[Joined]:
        """Every module of the result, in natural order; those that a budget leaves nothing for are left out.

        Raises
        ------
        LoraLabError
            what is asked for cannot be had from this method.
        NumericalError
            a factor is not finite, or exceeds the type of the output.
        CancelledError
            the observer no longer wants it.
        """
        options = self.options
        ranks: list[int | None] = [options.rank] * len(self.joints)
        energy = options.energy if options.error is None else 1.0 - options.error**2
        if options.parameters is not None:
            ranks = list(self._budget(options.parameters))
        dtype = torch_type(options.dtype or widest(self.joints))
        wanted = {joint.module: rank for joint, rank in zip(self.joints, ranks, strict=True) if rank != 0}
        chosen = [joint for joint in self.joints if joint.module in wanted]

        def one(joint: Joint, factors: list[Factors], biases: list[torch.Tensor | None]) -> Joined:
            found = self._combined(joint, factors, wanted[joint.module], energy)
            return _stored(joint, found, self._bias(joint, factors, biases), dtype)

        yield from self._each(chosen, one)

    def _budget(self, parameters: int) -> list[int]:
        if not self.method.is_low_rank:
            raise LoraLabError(
                f"The method {quoted(self.method.id)} gives matrices of full rank, among which a number of parameters "
                "cannot be divided.",
                hint="Say --rank or --energy, then resize what comes out.",
            )

        def one(joint: Joint, factors: list[Factors], _biases: object) -> torch.Tensor:
            whole = self._combined(joint, factors, None, 1.0).factors
            return factored_singular_values(whole.lora_A, whole.lora_B, 1.0, name=joint.module)

        spectra = list(self._each(self.joints, one))
        ranks = budget_ranks(spectra, [joint.cost for joint in self.joints], parameters)
        if not any(ranks):
            least = min(joint.cost for joint in self.joints)
            raise LoraLabError(
                f"{parameters} parameters leave no rank for any module, expected at least {least}, or the sum is zero."
            )
        return ranks

    def _combined(self, joint: Joint, factors: list[Factors], rank: int | None, energy: float | None) -> Combination:
        strengths = self.options.strengths_for(self.adapters)
        context = MergeContext(
            parameters=self.parameters,
            rank=rank,
            energy=energy,
            module=joint.module,
            seed=self.options.seed,
        )
        return self.method.combine(factors, [strengths[place] for place in joint.places], context)

    def _bias(self, joint: Joint, factors: list[Factors], biases: list[torch.Tensor | None]) -> torch.Tensor | None:
        """Σ wᵢ·scalingᵢ·biasᵢ, as the scaling of the output is 1."""
        strengths = self.options.strengths_for(self.adapters)
        total = None
        for place, one, bias in zip(joint.places, factors, biases, strict=True):
            if bias is not None:
                part = bias.to(torch.float64).reshape(-1) * (one.scaling * strengths[place])
                total = part if total is None else total + part
        return total

    def _each(
        self,
        joints: Sequence[Joint],
        work: Callable[[Joint, list[Factors], list[torch.Tensor | None]], T],
    ) -> Iterator[T]:
        """`work` on every module: side by side where it is small, one after another where it takes all processors."""
        read = self._read(joints)
        if self.method.is_low_rank:
            tasks = (
                (sum(one.lora_A.nbytes + one.lora_B.nbytes for one in factors), _bound(work, joint, factors, biases))
                for joint, factors, biases in read
            )
            results = side_by_side(tasks)
        else:
            results = (work(joint, factors, biases) for joint, factors, biases in read)
        for done, (joint, result) in enumerate(zip(joints, results, strict=True), start=1):
            self.observer.advance(done, len(joints), joint.module)
            yield result

    def _read(self, joints: Sequence[Joint]) -> Iterator[tuple[Joint, list[Factors], list[torch.Tensor | None]]]:
        """Factors of each module, every file opened once."""
        streams = []
        for place in range(len(self.adapters)):
            own = [
                delta for joint in joints for at, delta in zip(joint.places, joint.deltas, strict=True) if at == place
            ]
            streams.append(self.reader.factors_of(own))
        for joint in joints:
            stop_if_cancelled(self.observer)
            factors = [next(streams[place])[1] for place in joint.places]
            refs = [delta.lora_bias for delta in joint.deltas]
            yield joint, factors, [None if ref is None else self.reader.tensor(ref) for ref in refs]


def _bound(work: Callable[..., T], *arguments: object) -> Callable[[], T]:
    return lambda: work(*arguments)


def _stored(joint: Joint, found: Combination, bias: torch.Tensor | None, dtype: torch.dtype) -> Joined:
    """As it is written: of the output's type, and of rank 1 where nothing is left."""
    lora_A, lora_B = found.factors.lora_A, found.factors.lora_B
    if found.factors.scaling != 1.0:
        lora_B = lora_B.to(torch.float64) * found.factors.scaling
    if not lora_A.shape[0]:
        lora_A, lora_B = lora_A.new_zeros((1, lora_A.shape[1])), lora_B.new_zeros((lora_B.shape[0], 1))
    stored_A, stored_B = lora_A.to(dtype).contiguous(), lora_B.to(dtype).contiguous()
    stored_bias = None if bias is None else bias.to(dtype)
    for tensor in (stored_A, stored_B, stored_bias):
        if tensor is not None and not torch.isfinite(tensor).all():
            raise NumericalError(
                f"What comes out of {quoted(joint.module)} exceeds the range of {str(dtype).removeprefix('torch.')}.",
                hint="--dtype float32 has a wider one.",
            )
    rounding = rounding_error(lora_B.to(torch.float64), lora_A.to(torch.float64), stored_B, stored_A)
    return Joined(joint, stored_A, stored_B, stored_bias, found.norm, math.hypot(found.error, rounding))


def with_biases(modules: Sequence[Joined]) -> list[Joined]:
    """The same, a zero bias wherever there is none but could be: PEFT has one in all modules or in none.

    Raises
    ------
    AdapterError
        an embedding is among them, which PEFT gives no bias.
    """
    if all(module.bias is None for module in modules):
        return list(modules)
    embeddings = [module.joint.module for module in modules if module.joint.first.kind is DeltaKind.EMBEDDING]
    if embeddings:
        raise AdapterError(
            f"Biases of lora_B and {counted(embeddings, 'embedding', 'embeddings')} cannot stand in one PEFT adapter: "
            f"{summarised(map(quoted, embeddings))}.",
            hint="Leave one of them out with --module GLOB.",
        )
    return [
        module._replace(bias=module.lora_B.new_zeros(module.lora_B.shape[0])) if module.bias is None else module
        for module in modules
    ]
