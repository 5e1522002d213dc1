"""A method run over many modules: the factors that come out, as they are written, and what they leave out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch

from lora_lab.analyses.summaries import counted, summarised
from lora_lab.domain.adapter import DeltaKind
from lora_lab.errors import AdapterError, LoraLabError, NumericalError, quoted
from lora_lab.extension.changes import ChangeMethod
from lora_lab.extension.contracts import MergeContext
from lora_lab.linalg.budgets import budget_ranks
from lora_lab.linalg.combining import rounding_error
from lora_lab.linalg.side_by_side import side_by_side
from lora_lab.linalg.spectra import factored_singular_values
from lora_lab.operations.execution import torch_type
from lora_lab.operations.joining import widest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from lora_lab.domain.adapter import Adapter
    from lora_lab.domain.progress import Observer
    from lora_lab.extension.contracts import Combination, MergeMethod
    from lora_lab.operations.combine_options import CombineOptions
    from lora_lab.operations.joining import Joint
    from lora_lab.operations.supply import Portion, Supply

T = TypeVar("T")


class Joined(NamedTuple):
    """One module of the result as it is written.

    lora_A : (r, in), lora_B : (out, r), of the type of the output; ΔW = lora_B @ lora_A, or its transpose; of rank 0
        where a number of parameters leaves nothing, and then in no file
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
        """At least 1 of what is written, since no file holds factors of rank 0."""
        return int(self.lora_A.shape[0])

    @property
    def relative_error(self) -> float | None:
        """Of the whole; None of a zero."""
        return self.error / self.norm if self.norm > 0.0 else None


@dataclass(frozen=True)
class Combiner:
    """Runs one method over many modules."""

    adapters: Sequence[Adapter]
    joints: Sequence[Joint]
    method: MergeMethod
    options: CombineOptions
    parameters: Mapping[str, object]  # of the method, every one
    supply: Supply
    observer: Observer

    def run(self) -> Iterator[Joined]:
        """Every module, in natural order; of rank 0 where a number of parameters leaves nothing for it.

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
        norms: list[float] = []
        energy = options.energy if options.error is None else 1.0 - options.error**2
        if options.parameters is not None:
            found_ranks, norms = self._budget(options.parameters)
            ranks = list(found_ranks)
        dtype = torch_type(options.dtype or widest(self.joints))
        wanted = {joint.module: rank for joint, rank in zip(self.joints, ranks, strict=True) if rank != 0}
        chosen = [joint for joint in self.joints if joint.module in wanted]

        def one(portion: Portion) -> Joined:
            found = self._combined(portion, wanted[portion.joint.module], energy)
            return _stored(portion.joint, found, self._bias(portion), dtype)

        written = self._each(chosen, one, after=len(norms))
        for place, (joint, rank) in enumerate(zip(self.joints, ranks, strict=True)):
            yield _left_out(joint, norms[place], dtype) if rank == 0 else next(written)

    def _budget(self, parameters: int) -> tuple[list[int], list[float]]:
        """The rank of every module, and its norm."""
        rescaled = [joint.module for joint in self.joints if any(delta.magnitude for delta in joint.deltas)]
        if rescaled:
            raise LoraLabError(
                f"What DoRA does has full rank, among which a number of parameters cannot be divided: "
                f"{summarised(map(quoted, rescaled))}.",
                hint="Say --rank or --energy, then resize what comes out.",
            )
        if not self.method.is_low_rank:
            raise LoraLabError(
                f"The method {quoted(self.method.id)} gives matrices of full rank, among which a number of parameters "
                "cannot be divided.",
                hint="Say --rank or --energy, then resize what comes out.",
            )

        def one(portion: Portion) -> torch.Tensor:
            whole = self._combined(portion, None, 1.0).factors
            return factored_singular_values(whole.lora_A, whole.lora_B, 1.0, name=portion.joint.module)

        spectra = list(self._each(self.joints, one, before=len(self.joints)))
        # Experts of one parameter are stored at one rank: together they are worth √Σσ² of each next value.
        groups: dict[str, list[int]] = {}
        for place, joint in enumerate(self.joints):
            groups.setdefault(joint.first.weight_path, []).append(place)
        together = [
            torch.nn.utils.rnn.pad_sequence([spectra[place] for place in places]).square().sum(dim=1).sqrt()
            for places in groups.values()
        ]
        costs = [sum(self.joints[place].cost for place in places) for places in groups.values()]
        divided = budget_ranks(together, costs, parameters)
        if not any(divided):
            raise LoraLabError(
                f"{parameters} parameters leave no rank for any module, expected at least {min(costs)}, or the sum is "
                "zero."
            )
        ranks = {place: rank for places, rank in zip(groups.values(), divided, strict=True) for place in places}
        return [ranks[place] for place in range(len(spectra))], [float(values.norm()) for values in spectra]

    def _combined(self, portion: Portion, rank: int | None, energy: float | None) -> Combination:
        strengths = self.options.strengths_for(self.adapters)
        context = MergeContext(
            parameters=self.parameters,
            rank=rank,
            energy=energy,
            module=portion.joint.module,
            seed=self.options.seed,
            observer=self.observer,
        )
        own = [strengths[place] for place in portion.joint.places]
        if portion.is_factored:
            return self.method.combine(portion.factors, own, context)
        if not isinstance(self.method, ChangeMethod):
            raise LoraLabError(
                f"The method {quoted(self.method.id)} works on factors, and what DoRA does to "
                f"{quoted(portion.joint.module)} has none.",
                hint="lora-lab resize ADAPTER --base BASE --rank R makes a plain adapter of it, at an error it tells.",
            )
        with portion.changes() as changes:
            return self.method.combine_changes(changes, own, context)

    def _bias(self, portion: Portion) -> torch.Tensor | None:
        """Σ wᵢ·scalingᵢ·biasᵢ, as the scaling of the output is 1."""
        strengths = self.options.strengths_for(self.adapters)
        total = None
        for place, delta, bias in zip(portion.joint.places, portion.joint.deltas, portion.biases, strict=True):
            if bias is not None:
                part = bias.to(torch.float64).reshape(-1) * (delta.scaling * strengths[place])
                total = part if total is None else total + part
        return total

    def _each(
        self, joints: Sequence[Joint], work: Callable[[Portion], T], *, after: int = 0, before: int = 0
    ) -> Iterator[T]:
        """`work` on every module: side by side where it is small, one after another where it takes all processors.

        Parameters
        ----------
        after, before : how many modules were worked on in a pass before this one, and will be in the next
        """
        portions = self.supply.portions(joints, self.observer)
        if self.method.is_low_rank and not any(delta.magnitude for joint in joints for delta in joint.deltas):
            results = side_by_side((portion.size_bytes, partial(work, portion)) for portion in portions)
        else:
            results = map(work, portions)
        for done, (joint, result) in enumerate(zip(joints, results, strict=True), start=after + 1):
            self.observer.advance(done, after + len(joints) + before, joint.module)
            yield result


def _left_out(joint: Joint, norm: float, dtype: torch.dtype) -> Joined:
    outputs, inputs = joint.sides
    return Joined(
        joint, torch.zeros((0, inputs), dtype=dtype), torch.zeros((outputs, 0), dtype=dtype), None, norm, norm
    )


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
        an embedding or an expert is among them, which PEFT gives no bias.
    """
    if all(module.bias is None for module in modules):
        return list(modules)
    without = (DeltaKind.EMBEDDING, DeltaKind.EXPERTS)
    bare = [module.joint.module for module in modules if module.joint.first.kind in without]
    if bare:
        raise AdapterError(
            f"Biases of lora_B and {counted(bare, 'module', 'modules')} that can have none (embeddings, experts) "
            f"cannot stand in one PEFT adapter: {summarised(map(quoted, bare))}.",
            hint="Leave one of them out with --module GLOB.",
        )
    return [
        module._replace(bias=module.lora_B.new_zeros(module.lora_B.shape[0])) if module.bias is None else module
        for module in modules
    ]
