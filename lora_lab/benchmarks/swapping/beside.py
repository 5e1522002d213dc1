"""The strategy that merges nothing: the factors stay beside the weights, and only they are exchanged."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from lora_lab.extension.contracts import SwapFactors, SwapScene


class Slots:
    """Copy the new factors over the old ones, in place: no address changes, so nothing is compiled or captured anew.

    Every module has slots, each part of each adapter having its own number. One is as large as the largest rank that
    takes it; the rows that a smaller one leaves are zero.
    """

    def __init__(self, scene: SwapScene, first: int) -> None:
        self.scene = scene
        self.notes: tuple[str, ...] = ()
        self._slots = [_slots_of(module.adapters) for module in scene.modules]
        self._used: list[tuple[SwapFactors, ...]] = [() for _ in scene.modules]
        self.swap(first, first)

    @property
    def kept_bytes(self) -> int:
        """The slots."""
        return sum(slot.nbytes for slots in self._slots for slot in slots)

    def moved_bytes(self, old: int, new: int) -> int:
        """Every factor is read and written."""
        from lora_lab.benchmarks.swapping.workload import factor_bytes

        del old
        return sum(2 * factor_bytes(module.adapters[new]) for module in self.scene.modules)

    def swap(self, old: int, new: int) -> None:
        """Copy."""
        del old
        targets: list[torch.Tensor] = []
        sources: list[torch.Tensor] = []
        rest: list[torch.Tensor] = []
        for number, (module, slots) in enumerate(zip(self.scene.modules, self._slots, strict=True)):
            self._used[number] = tuple(
                slot.taken_by(part, targets, sources, rest)
                for slot, part in zip(slots, module.adapters[new], strict=False)
            )
        _copy(targets, sources, rest, self.scene.device)

    def restore(self, old: int) -> None:
        """The weights are the base's."""
        del old
        self._used = [() for _ in self.scene.modules]

    def beside(self, module: int) -> tuple[SwapFactors, ...]:
        """What the slots of a module hold."""
        return self._used[module]


def _copy(targets: list[torch.Tensor], sources: list[torch.Tensor], rest: list[torch.Tensor], device: str) -> None:
    """Copy many small tensors and clear others: a few launches on a device, each by one thread on the processor."""
    import torch

    from lora_lab.linalg.threads import in_lanes, worker_count

    if device == "cpu":
        in_lanes(lambda pair: pair[0].copy_(pair[1]), list(zip(targets, sources, strict=True)), worker_count())
        for tensor in rest:
            tensor.zero_()
        return
    if targets:
        torch._foreach_copy_(targets, sources)
    if rest:
        torch._foreach_zero_(rest)


class _Slot:
    """Room for one part of an adapter."""

    def __init__(self, parts: list[SwapFactors]) -> None:
        import torch

        rank = max(part.lora_A.shape[0] for part in parts)
        dtype = parts[0].lora_A.dtype
        for part in parts:
            dtype = torch.promote_types(dtype, torch.promote_types(part.lora_A.dtype, part.lora_B.dtype))
        one = parts[0]
        self.lora_A = one.lora_A.new_zeros((rank, one.lora_A.shape[1]), dtype=dtype)
        self.lora_B = one.lora_B.new_zeros((one.lora_B.shape[0], rank), dtype=dtype)
        magnitudes = [part.magnitude for part in parts if part.magnitude is not None]
        self.magnitude = torch.empty_like(magnitudes[0]) if magnitudes else None

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return self.lora_A.nbytes + self.lora_B.nbytes + (0 if self.magnitude is None else self.magnitude.nbytes)

    def taken_by(
        self,
        part: SwapFactors,
        targets: list[torch.Tensor],
        sources: list[torch.Tensor],
        rest: list[torch.Tensor],
    ) -> SwapFactors:
        """Note what to copy and what to clear, and say what the slot holds then."""
        from dataclasses import replace

        rank = part.lora_A.shape[0]
        targets += [self.lora_A[:rank], self.lora_B[:, :rank]]
        sources += [part.lora_A, part.lora_B]
        if rank < self.lora_A.shape[0]:
            rest += [self.lora_A[rank:], self.lora_B[:, rank:]]
        if part.magnitude is not None and self.magnitude is not None:
            targets.append(self.magnitude)
            sources.append(part.magnitude)
        kept = None if part.magnitude is None else self.magnitude
        return replace(part, lora_A=self.lora_A, lora_B=self.lora_B, magnitude=kept)


def _slots_of(adapters: tuple[tuple[SwapFactors, ...], ...]) -> list[_Slot]:
    most = max(len(parts) for parts in adapters)
    return [_Slot([parts[place] for parts in adapters if place < len(parts)]) for place in range(most)]
