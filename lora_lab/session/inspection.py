"""Everything that a file says about itself, as a Report; no torch is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from lora_lab.domain.modules import select_modules
from lora_lab.domain.report import Column, ColumnKind, Finding, Report, Scalars, Table
from lora_lab.errors import quoted
from lora_lab.session.raw_floats import is_finite, is_zero
from lora_lab.session.records import record_of
from lora_lab.storage.reading import read_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lora_lab.domain.adapter import Adapter
    from lora_lab.domain.base import Base
    from lora_lab.sources.remote import RemoteModel

_LOOKED_AT_BYTES: Final = 1 << 30

_ADAPTER: Final = (
    Column("format", "Format", ColumnKind.TEXT),
    Column("peft_type", "Type", ColumnKind.TEXT),
    Column("base_model", "Base model", ColumnKind.TEXT),
    Column("rank_min", "Smallest rank", ColumnKind.INTEGER),
    Column("rank_max", "Largest rank", ColumnKind.INTEGER),
    Column("parameters", "Parameters", ColumnKind.INTEGER),
    Column("size_bytes", "Size", ColumnKind.BYTES, unit="bytes"),
)
_FEATURES: Final = (
    Column("id", "Feature", ColumnKind.TEXT),
    Column("title", "Name", ColumnKind.TEXT, is_wide=True),
    Column("effect", "Effect", ColumnKind.TEXT),
    Column("detail", "What it does", ColumnKind.TEXT),
    Column("modules", "Modules", ColumnKind.INTEGER),
)
_MODULES: Final = (
    Column("module", "Module", ColumnKind.TEXT),
    Column("kind", "Kind", ColumnKind.TEXT),
    Column("shape", "Shape", ColumnKind.SHAPE),
    Column("rank", "r", ColumnKind.INTEGER),
    Column("alpha", "α", ColumnKind.NUMBER),
    Column("scaling", "Scaling", ColumnKind.NUMBER, formula="α/r, or α/√r for rsLoRA"),
    Column("dtype", "dtype", ColumnKind.TEXT),
    Column("parameters", "Parameters", ColumnKind.INTEGER),
)
_BASE: Final = (
    Column("format", "Format", ColumnKind.TEXT),
    Column("architecture", "Architecture", ColumnKind.TEXT),
    Column("parameters", "Parameters", ColumnKind.INTEGER),
    Column("size_bytes", "Size", ColumnKind.BYTES, unit="bytes"),
    Column("shards", "Shards", ColumnKind.INTEGER),
)
_TENSORS: Final = (
    Column("module", "Tensor", ColumnKind.TEXT),
    Column("shape", "Shape", ColumnKind.SHAPE),
    Column("dtype", "dtype", ColumnKind.TEXT),
    Column("parameters", "Parameters", ColumnKind.INTEGER),
)
_SAVED: Final = (
    Column("module", "Module", ColumnKind.TEXT),
    Column("role", "Role", ColumnKind.TEXT),
    Column("tensor", "Tensor", ColumnKind.TEXT),
    Column("shape", "Shape", ColumnKind.SHAPE),
    Column("dtype", "dtype", ColumnKind.TEXT),
)


def inspect_adapter(adapter: Adapter, globs: Sequence[str] = ()) -> Report:
    """Report on an adapter from its headers, its configuration, and what is suspicious in its factors."""
    rank_min, rank_max = adapter.ranks
    shown = set(select_modules(adapter.modules, globs))
    values = {
        "format": adapter.format,
        "peft_type": adapter.peft_type,
        "base_model": adapter.base_model,
        "rank_min": rank_min,
        "rank_max": rank_max,
        "parameters": adapter.parameters,
        "size_bytes": adapter.size_bytes,
    }
    modules = tuple(
        {
            "module": delta.module,
            "kind": delta.kind.value,
            "shape": list(delta.shape),
            "rank": delta.rank,
            "alpha": delta.alpha,
            "scaling": delta.scaling,
            "dtype": "+".join(dict.fromkeys((str(delta.lora_A.dtype), str(delta.lora_B.dtype)))),
            "parameters": delta.parameters,
        }
        for delta in adapter.deltas
        if delta.module in shown
    )
    tables = [Table("features", "What changes ΔW, or the model beside it", _FEATURES, _features(adapter), key="id")]
    if adapter.saved:
        tables.append(Table("saved", "Tensors beside the factors", _SAVED, _saved(adapter), key="tensor"))
    return Report(
        command="inspect",
        title=adapter.name,
        tables=(*tables, Table("modules", "Modules", _MODULES, modules)),
        scalars=(Scalars("", "Adapter", _ADAPTER, values),),
        findings=(*adapter.findings, *_suspicions(adapter)),
        inputs=(record_of(adapter, headers_only=True),),
    )


def inspect_base(base: Base, globs: Sequence[str] = (), *, remote: Sequence[RemoteModel] = ()) -> Report:
    """Report on a checkpoint from the headers of its shards; `remote` are models that are read in parts."""
    shown = set(select_modules(tuple(base.tensors), globs))
    architectures = base.configuration.get("architectures")
    values = {
        "format": "safetensors",
        "architecture": architectures[0] if isinstance(architectures, list) and architectures else None,
        "parameters": base.parameters,
        "size_bytes": base.size_bytes,
        "shards": len(base.shards),
    }
    tensors = tuple(
        {"module": name, "shape": list(ref.shape), "dtype": str(ref.dtype), "parameters": ref.elements}
        for name, ref in base.tensors.items()
        if name in shown
    )
    return Report(
        command="inspect",
        title=base.name,
        tables=(Table("modules", "Tensors", _TENSORS, tensors),),
        scalars=(Scalars("", "Checkpoint", _BASE, values),),
        findings=base.findings,
        inputs=(record_of(base, headers_only=True, remote=remote),),
    )


def _features(adapter: Adapter) -> tuple[dict[str, Any], ...]:
    return tuple(
        {
            "id": feature.id,
            "title": feature.title,
            "effect": feature.effect.value,
            "detail": feature.detail,
            "modules": feature.modules or None,
        }
        for feature in adapter.features
    )


def _saved(adapter: Adapter) -> tuple[dict[str, Any], ...]:
    return tuple(
        {
            "module": saved.module,
            "role": saved.role.value,
            "tensor": saved.tensor.name,
            "shape": list(saved.tensor.shape),
            "dtype": str(saved.tensor.dtype),
        }
        for saved in adapter.saved
    )


def _suspicions(adapter: Adapter) -> Iterator[Finding]:
    """Findings for NaN or infinity in a factor, and for a lora_B of zeros: it was never trained, and ΔW = 0.

    Looking at bytes needs no arithmetic library. Of an adapter larger than the limit the rest is not looked at; its
    spectrum finds the same.
    """
    budget, seen = _LOOKED_AT_BYTES, set()
    for delta in adapter.deltas:
        for name, ref in (("lora_A", delta.lora_A), ("lora_B", delta.lora_B)):
            budget -= ref.size_bytes
            if budget < 0 or ref in seen or not ref.dtype.is_float:
                continue
            seen.add(ref)
            raw = read_bytes(ref)
            module = quoted(delta.module)
            if not is_finite(raw, ref.dtype):
                yield Finding("not_finite", f"{name} of {module} holds NaN or infinity.", delta.module)
            elif name == "lora_B" and is_zero(raw, ref.dtype):
                yield Finding("zero_lora_B", f"lora_B of {module} is zero: ΔW is zero there.", delta.module)
