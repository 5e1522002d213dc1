"""From tensors to deltas: which module, which shape, which rank and scaling, checked against the configuration.

Shapes as PEFT stores them, with E experts and g groups:

=========== ================== ====================== ==========================================
kind        lora_A             lora_B                 ΔW
=========== ================== ====================== ==========================================
linear      (r, in)            (out, r)               s·B·A, transposed with fan_in_fan_out
embedding   (r, vocabulary)    (dim, r)               s·(B·A)ᵀ
convolution (r, in, k…)        (out, r/g, 1…)         s·B·A over flattened kernels
experts     (E·r, in)          (out, r·E)             s·B[:, e::E]·A[e·r:(e+1)·r] for expert e
=========== ================== ====================== ==========================================

Source: PEFT 0.21, ``tuners/lora/layer.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from lora_lab.domain.adapter import Delta, DeltaKind
from lora_lab.domain.modules import natural_key
from lora_lab.errors import AdapterError, quoted
from lora_lab.formats import peft_keys as names
from lora_lab.formats.peft_experts import expert_deltas, parameter_modules
from lora_lab.formats.peft_keys import NESTED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lora_lab.domain.report import Finding
    from lora_lab.domain.tensors import TensorRef
    from lora_lab.formats.peft_config import Patterns, PeftConfig
    from lora_lab.formats.peft_keys import Keys

_EXTRAS: Final = (names.MAGNITUDE, names.BIAS, names.DIAGONAL)
_FACTORS: Final = frozenset((names.A, names.B, names.EMBEDDING_A, names.EMBEDDING_B))
# Every adapter of one base has the same modules: their sort keys are worth keeping.
order_key = lru_cache(maxsize=1 << 15)(natural_key)


@dataclass(frozen=True)
class Layout:
    """The deltas of a file, in natural order, and what was noticed."""

    deltas: tuple[Delta, ...]
    findings: tuple[Finding, ...] = ()
    is_loose: bool = False  # shapes belong to a variant whose ΔW these files do not give


def lay_out(keys: Keys, config: PeftConfig, patterns: Patterns, *, is_loose: bool) -> Layout:
    """Make the deltas.

    Parameters
    ----------
    is_loose : the factors are those of a variant that is refused anyway; shapes need not fit together

    Raises
    ------
    AdapterError
        a factor of no float type or without elements, ranks that differ between factors or from the configuration.
    """
    findings: list[Finding] = []
    _require_floats(keys)
    maker = _Maker(keys, config, patterns, is_loose=is_loose)
    deltas = list(maker.plain())
    if maker.nested or config.target_parameters:
        nested, told = maker.special()
        deltas += nested
        findings += told
    deltas += maker.embeddings()
    deltas.sort(key=lambda delta: order_key(delta.module))
    return Layout(tuple(deltas), tuple(findings), is_loose)


class _Maker:
    """Deltas of one file; what depends on shapes alone is worked out once for each pair of shapes."""

    def __init__(self, keys: Keys, config: PeftConfig, patterns: Patterns, *, is_loose: bool) -> None:
        self._keys, self._config, self._patterns, self._is_loose = keys, config, patterns, is_loose
        self._shapes: dict[tuple[tuple[int, ...], tuple[int, ...]], tuple[DeltaKind, int, tuple[int, ...], int]] = {}
        self._has_patterns = bool(config.rank_pattern or config.alpha_pattern)
        self._default = (config.rank, config.alpha, config.scaling(config.rank, config.alpha))
        self._has_extras = any(keys.of(part) for part in _EXTRAS)
        self.nested: list[str] = []  # modules with ".base_layer" in their path
        self._parameters: dict[str, str] = {}
        if config.target_parameters:
            self._parameters = parameter_modules(keys.of(names.A), config, patterns)

    def plain(self) -> Iterator[Delta]:
        """Linear layers and convolutions."""
        factors_A, factors_B = self._keys.of(names.A), self._keys.of(names.B)
        for module, lora_A in factors_A.items():
            if module in self._parameters:
                continue
            if NESTED in module:
                self.nested.append(module)
                continue
            yield self._delta(module, lora_A, factors_B[module])

    def special(self) -> tuple[list[Delta], list[Finding]]:
        """What PEFT nests under ``base_layer``: the output projection of an attention, and parameters of experts."""
        factors_A, factors_B = self._keys.of(names.A), self._keys.of(names.B)
        deltas = []
        for module in self.nested:
            # torch's MultiheadAttention holds its out_proj below the wrapped layer; patterns name the attention.
            owner, _, inner = module.rpartition(f"{NESTED}.")
            if not inner or not owner:
                raise AdapterError(
                    f"The module {quoted(module)} is nested in another adapter's layer, and the configuration's "
                    "target_parameters name no parameter of it."
                )
            path, matched = module.replace(NESTED, ""), owner.replace(NESTED, "")
            deltas.append(self._delta(module, factors_A[module], factors_B[module], path=path, matched=matched))
        found, findings = expert_deltas(self._parameters, factors_A, factors_B, self._config, self._patterns)
        return deltas + found, findings

    def embeddings(self) -> Iterator[Delta]:
        """Embedding layers."""
        factors_B = self._keys.of(names.EMBEDDING_B)
        for module, lora_A in self._keys.of(names.EMBEDDING_A).items():
            lora_B = factors_B[module]
            if len(lora_A.shape) != 2 or len(lora_B.shape) != 2 or lora_A.shape[0] != lora_B.shape[1]:
                raise _mismatch(module, lora_A, lora_B)
            path = module.replace(NESTED, "")
            rank, alpha, scaling = self._numbers(path, lora_A.shape[0])
            yield Delta(
                path,
                DeltaKind.EMBEDDING,
                lora_A,
                lora_B,
                rank,
                alpha,
                scaling,
                (lora_A.shape[1], lora_B.shape[0]),
                magnitude=self._keys.of(names.MAGNITUDE).get(module),
            )

    def _delta(self, module: str, lora_A: TensorRef, lora_B: TensorRef, *, path: str = "", matched: str = "") -> Delta:
        """`module` is the file's name, `path` the base's, `matched` the one that the configuration's patterns see."""
        pair = (lora_A.shape, lora_B.shape)
        fitting = self._shapes.get(pair)
        if fitting is None:
            fitting = self._shapes[pair] = self._fit(path or module, lora_A, lora_B)
        kind, rank, shape, groups = fitting
        rank, alpha, scaling = self._numbers(matched or module, rank)
        is_transposed = self._config.is_fan_in_fan_out and kind is DeltaKind.LINEAR
        delta = Delta(path or module, kind, lora_A, lora_B, rank, alpha, scaling, shape, is_transposed, groups)
        return self._with_extras(delta, module) if self._has_extras else delta

    def _with_extras(self, delta: Delta, module: str) -> Delta:
        magnitude, bias, diagonal = (self._keys.of(part).get(module) for part in _EXTRAS)
        outputs = delta.lora_B.shape[0]
        for ref, expected in ((magnitude, outputs), (bias, outputs), (diagonal, delta.rank)):
            if ref is not None and ref.elements != expected and not self._is_loose:
                raise AdapterError(
                    f"The tensor {quoted(ref.name)} has the shape {list(ref.shape)}, expected {expected} elements."
                )
        return replace(delta, magnitude=magnitude, lora_bias=bias, diagonal=diagonal)

    def _numbers(self, module: str, rank: int) -> tuple[int, float, float]:
        """Rank, alpha and scaling of `module`, whose factors have `rank`."""
        expected, alpha, scaling = self._default
        if self._has_patterns:
            expected, alpha = self._patterns.rank_of(module), self._patterns.alpha_of(module)
            scaling = self._config.scaling(expected, alpha)
        if rank != expected and not self._is_loose:
            raise AdapterError(
                f"The module {quoted(module)} has rank {rank} in its tensors, expected {expected} as the configuration "
                "says.",
                hint="Mend r or rank_pattern in adapter_config.json; the scaling depends on them.",
            )
        return expected, alpha, scaling

    def _fit(self, module: str, lora_A: TensorRef, lora_B: TensorRef) -> tuple[DeltaKind, int, tuple[int, ...], int]:
        """Kind, rank, shape of ΔW and groups."""
        a, b = lora_A.shape, lora_B.shape
        if len(a) == len(b) == 2:
            if a[0] != b[1] and not self._is_loose:
                raise _mismatch(module, lora_A, lora_B)
            shape = (a[1], b[0]) if self._config.is_fan_in_fan_out else (b[0], a[1])
            return DeltaKind.LINEAR, a[0], shape, 1
        if self._is_loose:
            return DeltaKind.LINEAR, a[0] if a else 0, (b[0] if b else 0, a[1] if len(a) > 1 else 0), 1
        groups, rest = divmod(a[0], b[1]) if len(b) > 1 and b[1] else (0, 1)
        # Each of the g groups of outputs sees r/g rows of A.
        is_convolution = len(a) == len(b) >= 3 and not rest and all(side == 1 for side in b[2:])
        if not is_convolution or b[0] % groups:
            raise _mismatch(module, lora_A, lora_B)
        return DeltaKind.CONV, a[0], (b[0], *a[1:]), groups


def _mismatch(module: str, lora_A: TensorRef, lora_B: TensorRef) -> AdapterError:
    return AdapterError(
        f"The module {quoted(module)} in {quoted(lora_A.file.path)} has lora_A of shape {list(lora_A.shape)} and "
        f"lora_B of shape {list(lora_B.shape)}, expected (rank, in) and (out, rank) of one rank.",
        hint="The factors are of different trainings, or were cut: fetch or save the file again.",
    )


def _require_floats(keys: Keys) -> None:
    """Every tensor of a pair holds floating-point numbers of whole bytes; every factor is a matrix or a kernel."""
    for part, table in keys.parts.items():
        least = 2 if part in _FACTORS else 1
        for dtype, shape in {(ref.dtype, ref.shape) for ref in table.values()}:
            if dtype.is_float and len(shape) >= least and 0 not in shape:
                continue
            ref = next(ref for ref in table.values() if ref.dtype is dtype and ref.shape == shape)
            if not dtype.is_float:
                raise AdapterError(
                    f"The tensor {quoted(ref.name)} has the dtype {dtype}, expected floating-point numbers."
                )
            raise AdapterError(
                f"The tensor {quoted(ref.name)} has the shape {list(shape)}, expected a matrix with elements.",
                hint="Sharded training saves such tensors when the shards are not gathered first.",
            )
