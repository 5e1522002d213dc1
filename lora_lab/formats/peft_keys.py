"""Tensor names of PEFT adapters, in every spelling that its versions and wrappers wrote.

One name is ``base_model.model.`` + module + ``.lora_A.`` + adapter name + ``.weight``. The prefix and the adapter name
may be missing; ``torch.compile``, DDP and FSDP put components of their own into the module.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from lora_lab.domain.report import Finding
from lora_lab.errors import AdapterError, quoted

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from lora_lab.domain.tensors import TensorRef

PREFIX: Final = "base_model.model."
NESTED: Final = ".base_layer"  # a level for each further parameter of a module, and for what it wraps
_ROOT: Final = "base_model.model"
_WRAPPERS: Final = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_DDP: Final = "module."
_MARK: Final = ".lora_"

A: Final = "A"
B: Final = "B"
BIAS: Final = "bias"
EMBEDDING_A: Final = "embedding_A"
EMBEDDING_B: Final = "embedding_B"
MAGNITUDE: Final = "magnitude"
DIAGONAL: Final = "diagonal"

# What stands after ".lora_" where no adapter name is in between.
_TAILS: Final = {
    "A.weight": A,
    "B.weight": B,
    "B.bias": BIAS,
    "embedding_A": EMBEDDING_A,
    "embedding_B": EMBEDDING_B,
    "embedding_A.weight": EMBEDDING_A,
    "embedding_B.weight": EMBEDDING_B,
    "magnitude_vector": MAGNITUDE,
    "magnitude_vector.weight": MAGNITUDE,
    "diag": DIAGONAL,
}
# With one: first component and ending, which the name stands between.
_NAMED: Final = (
    ("A.", ".weight", A),
    ("B.", ".weight", B),
    ("B.", ".bias", BIAS),
    ("embedding_A.", "", EMBEDDING_A),
    ("embedding_B.", "", EMBEDDING_B),
    ("magnitude_vector.", ".weight", MAGNITUDE),
    ("magnitude_vector.", "", MAGNITUDE),
    ("diag.", "", DIAGONAL),
)


@dataclass
class Keys:
    """The tensors of a file, sorted by what they are; modules without prefix and wrappers."""

    parts: dict[str, dict[str, TensorRef]] = field(default_factory=dict)  # part, then module
    others: dict[str, TensorRef] = field(default_factory=dict)  # name without prefix; no factor
    unknown: list[TensorRef] = field(default_factory=list)  # "lora_" in the name, but no known part
    findings: list[Finding] = field(default_factory=list)

    def of(self, part: str) -> dict[str, TensorRef]:
        """Tensors of one part under their modules."""
        return self.parts.get(part, {})


def sort_keys(tensors: Mapping[str, TensorRef]) -> Keys:
    """Say of every tensor which module and which part it is.

    Raises
    ------
    AdapterError
        two names mean the same part of one module, or the file holds several adapters.
    """
    keys = Keys()
    parts = keys.parts = {part: {} for part in (*dict.fromkeys(_TAILS.values()),)}
    table_of = {tail: parts[part] for tail, part in _TAILS.items()}
    is_wrapped = _is_wrapped(tensors)
    skipped = len(PREFIX)
    adapter_names: set[str] = set()
    repeated: list[tuple[str, str]] = []
    unprefixed = 0
    for name, ref in tensors.items():
        head, mark, tail = name.rpartition(_MARK)
        if is_wrapped:
            head = _unwrapped(head)
        if not mark:
            _sort_other(keys, name, ref, is_wrapped=is_wrapped)
            continue
        if head.startswith(PREFIX):
            head = head[skipped:]
        elif head == _ROOT:
            head = ""
        else:
            unprefixed += 1
        table = table_of.get(tail)
        if table is None:
            part, adapter = _named_part(tail)
            if part is None:
                keys.unknown.append(ref)
                continue
            adapter_names.add(adapter)
            table = parts[part]
        if head in table:
            repeated.append((table[head].name, name))
            continue
        table[head] = ref
    _require_one_adapter(adapter_names, repeated)
    if is_wrapped:
        keys.findings.append(
            Finding("wrapped_names", "The tensor names carry wrappers of torch.compile, DDP or FSDP; they are removed.")
        )
    if unprefixed:
        keys.findings.append(
            Finding("missing_prefix", f"{unprefixed} tensor names lack {quoted(PREFIX)}; PEFT would not load them.")
        )
    return keys


def require_pairs(keys: Keys) -> None:
    """Refuse a file in which a module has one factor and not the other; every such module is named.

    Raises
    ------
    AdapterError
    """
    orphans: list[str] = []
    for first, second in ((A, B), (EMBEDDING_A, EMBEDDING_B)):
        has_first, has_second = keys.of(first), keys.of(second)
        if has_first.keys() == has_second.keys():
            continue
        orphans += [f"{quoted(module)} has no lora_{second}" for module in has_first if module not in has_second]
        orphans += [f"{quoted(module)} has no lora_{first}" for module in has_second if module not in has_first]
    if orphans:
        what = "1 module has" if len(orphans) == 1 else f"{len(orphans)} modules have"
        raise AdapterError(
            f"{what} one factor of a pair and not the other: {some(orphans)}.",
            hint="The file is incomplete; fetch or save it again.",
        )
    both = keys.of(A).keys() & keys.of(EMBEDDING_A).keys()
    if both:
        raise AdapterError(f"The module {quoted(min(both))} has both linear and embedding factors, expected one pair.")


def some(texts: Iterable[str], limit: int = 10) -> str:
    """The first `limit` of `texts`, and how many more there are.

    Examples
    --------
    >>> some(["a", "b", "c"], limit=2)
    'a, b and 1 more'
    """
    listed = list(texts)
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more


def _sort_other(keys: Keys, name: str, ref: TensorRef, *, is_wrapped: bool) -> None:
    plain = (_unwrapped(name) if is_wrapped else name).removeprefix(PREFIX)
    if plain.startswith("lora_"):  # factors of the whole model, which is one module without a name
        part = _TAILS.get(plain.removeprefix("lora_"))
        if part is None:
            keys.unknown.append(ref)
        else:
            keys.parts[part][""] = ref
        return
    keys.others[plain] = ref


def _named_part(tail: str) -> tuple[str | None, str]:
    for start, end, part in _NAMED:
        if tail.startswith(start) and tail.endswith(end) and len(tail) > len(start) + len(end):
            return part, tail[len(start) : len(tail) - len(end)]
    return None, ""


def _is_wrapped(tensors: Mapping[str, TensorRef]) -> bool:
    blob = "\n".join(tensors)
    return (
        "_orig_mod" in blob
        or "_wrapped_module" in blob
        or blob.startswith(f"{_DDP}{PREFIX}")
        or f"\n{_DDP}{PREFIX}" in blob
    )


def _unwrapped(name: str) -> str:
    plain = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
    # "module." of DDP stands before everything else; further in, it may be a true name.
    return plain.removeprefix(_DDP) if plain.startswith((f"{_DDP}{PREFIX}", f"{_DDP}{_ROOT}")) else plain


def _require_one_adapter(adapter_names: set[str], repeated: list[tuple[str, str]]) -> None:
    if len(adapter_names) > 1:
        listed = some(quoted(name) for name in sorted(adapter_names))
        raise AdapterError(f"The file holds {len(adapter_names)} adapters ({listed}), expected one.")
    if repeated:
        first, second = repeated[0]
        raise AdapterError(
            f"The tensors {quoted(first)} and {quoted(second)} mean the same factor, expected one of them.",
            hint="Which of them was trained cannot be told from the file.",
        )
