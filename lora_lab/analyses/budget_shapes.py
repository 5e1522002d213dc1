"""The matrices that a budget is about: of a checkpoint's headers, of a config.json alone, or given by hand."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from lora_lab.domain.architectures import architecture_of, known_families
from lora_lab.domain.base import Base
from lora_lab.domain.dtypes import DType
from lora_lab.domain.modules import natural_key, select_modules
from lora_lab.domain.quantised import packed_weights
from lora_lab.domain.report import Finding
from lora_lab.domain.sheet import Weight, WeightKind
from lora_lab.errors import AdapterError, CompatibilityError, LoraLabError, quoted

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from lora_lab.domain.tensors import TensorRef
    from lora_lab.extension.contracts import AnalysisContext

ALL_LINEAR: Final = "all-linear"
_MATRIX: Final = re.compile(r"(?:(?P<name>[^=]+)=)?(?P<count>[0-9]{1,9})x(?P<out>[0-9]{1,12})x(?P<in>[0-9]{1,12})")
_HALF_BYTES: Final = 2
_DTYPES: Final = {
    "float64": DType.F64,
    "float32": DType.F32,
    "float16": DType.F16,
    "bfloat16": DType.BF16,
}
# Integers and truth values in a checkpoint that is not quantised count or mask, they are not trained.
_COUNTING: Final = frozenset({DType.BOOL, DType.U8, DType.I16, DType.U16, DType.I32, DType.U32, DType.I64, DType.U64})
_BUFFERS: Final = (".inv_freq", ".masked_bias", ".position_ids")
_EMBEDDINGS: Final = frozenset({"wte", "wpe", "shared", "relative_attention_bias"})
_EMBEDDING: Final = re.compile(r"(?:^|_)(?:embed|embeddings?|emb)(?:_(?:tokens|positions|in))?$")
_CONV1D: Final = frozenset({"c_attn", "c_proj", "c_fc", "q_attn"})
# What makes logits, wherever it is; and what makes classes, at the top.
_LANGUAGE_OUTPUTS: Final = frozenset({"lm_head", "embed_out", "proj_out", "vocab_projector"})
_OUTPUTS: Final = frozenset({"decoder", "lm_head.decoder", "cls.predictions.decoder"})
_CLASSIFIERS: Final = frozenset({"score", "classifier"})


@dataclass(frozen=True, slots=True)
class Matrix:
    """A matrix that LoRA can be put on, ``count`` of them alike."""

    module: str
    outputs: int
    inputs: int
    shape: tuple[int, ...]  # as stored
    kind: WeightKind
    count: int = 1
    is_output: bool = False
    fused: int = 1  # matrices one on top of the other in a stack of experts
    ranks: int = 1  # times the rank asked for

    @property
    def elements(self) -> int:
        """Elements of all of them."""
        return self.count * self.outputs * self.inputs

    @property
    def per_rank(self) -> int:
        """Parameters of all of them where rank 1 is asked for: count·(out + in)."""
        return self.count * self.ranks * (self.outputs + self.inputs)


@dataclass(frozen=True)
class Model:
    """What a budget needs to know of a model."""

    name: str
    matrices: tuple[Matrix, ...]
    parameters: int
    dtype: DType | None  # None: not said, and 16 bit is taken
    source: str  # tensors, configuration or given
    findings: tuple[Finding, ...] = ()

    @property
    def bytes_per_parameter(self) -> int:
        """Of the base as stored; 2 where that is not said or the base is quantised."""
        return max(self.dtype.bits // 8, _HALF_BYTES) if self.dtype else _HALF_BYTES


def model_of(context: AnalysisContext) -> Model:
    """Find the matrices and the size of the model that `context` is about; no weight is read.

    Raises
    ------
    AdapterError
        the subject is an adapter.
    CompatibilityError
        there is nothing to take shapes from, or they cannot be known from what is there.
    """
    subject = context.subjects[0] if context.subjects else None
    if subject is not None and not isinstance(subject, Base):
        raise AdapterError(
            f"{quoted(subject.name)} is an adapter, expected a base model, its config.json, or --matrix COUNTxOUTxIN.",
            hint="lora-lab inspect shows what an adapter costs.",
        )
    given = tuple(given_matrix(text, place) for place, text in enumerate(context.parameters["matrix"], start=1))
    size: int | None = context.parameters["model_parameters"]
    if given:
        model = _given_model(given, subject, size)
    elif subject is None:
        raise CompatibilityError(
            "There is no model to take shapes from, expected a base, a config.json or --matrix COUNTxOUTxIN.",
            hint="For instance: lora-lab budget --matrix 96x12288x12288 --rank 4",
        )
    else:
        model = _base_model(subject, size)
    chosen = set(select_modules([matrix.module for matrix in model.matrices], context.modules))
    matrices = tuple(matrix for matrix in model.matrices if matrix.module in chosen)
    return replace(model, matrices=matrices)


def given_matrix(text: str, place: int = 1) -> Matrix:
    """Read ``COUNTxOUTxIN`` or ``NAME=COUNTxOUTxIN``.

    Parameters
    ----------
    place : which of the given ones this is, for the name of one that has none

    Raises
    ------
    LoraLabError
        it is not written so, or a number is 0.

    Examples
    --------
    >>> given_matrix("W_q=96x12288x12288").per_rank
    2359296
    """
    found = _MATRIX.fullmatch(text.strip().replace("×", "x"))
    numbers = [int(found[part]) for part in ("count", "out", "in")] if found else []
    if not found or 0 in numbers:
        raise LoraLabError(
            f"The matrix {quoted(text)} is not understood, expected COUNTxOUTxIN or NAME=COUNTxOUTxIN "
            "with positive whole numbers.",
            hint="For instance --matrix W_q=96x12288x12288",
        )
    count, outputs, inputs = numbers
    name = (found["name"] or f"matrix{place}").strip()
    return Matrix(name, outputs, inputs, (outputs, inputs), WeightKind.LINEAR, count)


def chosen_matrices(model: Model, targets: str) -> tuple[tuple[Matrix, ...], tuple[str, ...]]:
    """Pick the matrices that a set of targets names, and tell which of its parts name none.

    Parameters
    ----------
    targets : names, ends of names or globs, separated by commas; ``all-linear`` as PEFT means it

    Raises
    ------
    CompatibilityError
        nothing matches.
    """
    parts = tuple(part.strip() for part in targets.split(",") if part.strip())
    names = [matrix.module for matrix in model.matrices]
    chosen: dict[str, Matrix] = {}
    lost = []
    for part in parts:
        if part.lower() == ALL_LINEAR:
            found = _all_linear(model.matrices)
        else:
            named = frozenset(select_modules(names, (part,)))
            found = {matrix.module: matrix for matrix in model.matrices if matrix.module in named}
        chosen = {**found, **chosen}
        if not found:
            lost.append(part)
    if not chosen:
        raise CompatibilityError(
            f"No matrix of {quoted(model.name)} matches {quoted(targets)}, expected one of: {_kinds(names)}.",
            hint=f"--targets takes names, ends of names, globs and {ALL_LINEAR}, separated by commas.",
        )
    return tuple(chosen[name] for name in names if name in chosen), tuple(lost)


def _all_linear(matrices: Sequence[Matrix]) -> dict[str, Matrix]:
    """What PEFT's ``all-linear`` means: every linear layer but the output, and the experts.

    Gate and up of an expert, which are one matrix, get the rank of two (PEFT 0.21,
    ``utils/transformers_weight_conversion.py``).
    """
    linear = (WeightKind.LINEAR, WeightKind.CONV1D, WeightKind.EXPERTS)
    return {
        matrix.module: replace(matrix, ranks=matrix.fused)
        for matrix in matrices
        if matrix.kind in linear and not matrix.is_output
    }


def _kinds(names: Sequence[str], most: int = 12) -> str:
    """The different last names, in order of their first appearance."""
    lasts = list(dict.fromkeys(name.rpartition(".")[2] for name in names))
    shown = ", ".join(lasts[:most])
    return f"{shown} and {len(lasts) - most} more" if len(lasts) > most else shown or "none"


def _given_model(given: tuple[Matrix, ...], subject: Base | None, size: int | None) -> Model:
    named = Counter(matrix.module for matrix in given)
    twice = [name for name, count in named.items() if count > 1]
    if twice:
        raise LoraLabError(f"The matrix {quoted(twice[0])} is given {named[twice[0]]} times, expected one name each.")
    dtype = None
    findings: list[Finding] = []
    if size is None and subject is not None and (subject.tensors or _is_known(subject.configuration)):
        model = _base_model(subject, None)
        size, dtype = model.parameters, model.dtype
        findings.extend(model.findings)
    if size is None:
        size = sum(matrix.elements for matrix in given)
        findings.append(
            Finding(
                "model_size_unknown",
                "Only the given matrices count as the model: its share, storage and training memory leave the rest "
                "out; --model-parameters N gives its size.",
            )
        )
    return Model(subject.name if subject else "given matrices", given, size, dtype, "given", tuple(findings))


def _is_known(configuration: Mapping[str, object]) -> bool:
    return configuration.get("model_type") in known_families()


def _base_model(base: Base, size: int | None) -> Model:
    if base.tensors and not (packed := packed_weights(base)):
        return _stored_model(base, size)
    findings = list(base.findings)
    if base.tensors:
        if not _is_known(base.configuration):
            raise CompatibilityError(
                f"{quoted(base.name)} is quantised: {quoted(packed[0])} packs several numbers into one, "
                "so the file does not say the shapes of its matrices.",
                hint="Give the model's matrices with --matrix COUNTxOUTxIN, or the weights before quantisation.",
            )
        findings.append(
            Finding("quantised", f"{quoted(base.name)} is quantised: shapes are those of its configuration.")
        )
    architecture = architecture_of(base.configuration, name=base.name)
    if not architecture.is_head_known:
        findings.append(
            Finding(
                "head_unknown",
                f"The head {quoted(architecture.head)} of the family {architecture.family} is not known here and is "
                "counted as nothing.",
            )
        )
    dtype = _declared_dtype(base.configuration)
    if dtype is None:
        findings.append(Finding("dtype_assumed", "The configuration names no dtype: 2 bytes each are counted."))
    parameters = architecture.parameters if size is None else size
    return Model(base.name, _matrices(architecture.weights), parameters, dtype, "configuration", tuple(findings))


def _declared_dtype(configuration: Mapping[str, object]) -> DType | None:
    said = configuration.get("dtype", configuration.get("torch_dtype"))
    return _DTYPES.get(said.removeprefix("torch.")) if isinstance(said, str) else None


def _stored_model(base: Base, size: int | None) -> Model:
    known = _known_weights(base)
    sizes: Counter[DType] = Counter()
    weights, tied, buffers = [], [], []
    for name, ref in base.tensors.items():
        weight = _stored_weight(name, ref.shape, known.get(name))
        if is_buffer(ref):
            buffers.append(name)
        elif weight.is_tied:
            tied.append(name)
        else:
            sizes[ref.dtype] += ref.elements
        if weight.kind is not WeightKind.OTHER:
            weights.append(weight)
    stored = {weight.name for weight in weights}
    shared = [weight for weight in known.values() if weight.is_tied and weight.kind is WeightKind.LINEAR]
    weights += [weight for weight in shared if weight.name not in stored] if stored else []
    dtype = max(sizes, key=lambda dtype: sizes[dtype]) if sizes else None
    findings = list(base.findings)
    for code, names, why in (
        ("buffers_left_out", buffers, "are buffers, not parameters"),
        ("tied_weights_stored", tied, "are other weights' memory by the configuration"),
    ):
        if names:
            findings.append(Finding(code, f"{len(names)} tensors {why} and not counted, {quoted(names[0])} first."))
    parameters = sizes.total() if size is None else size
    return Model(base.name, _matrices(weights), parameters, dtype, "tensors", tuple(findings))


def is_buffer(ref: TensorRef) -> bool:
    """Whether a tensor is none of the parameters: positions, masks, frequencies, which older files hold."""
    is_mask = len(ref.shape) == 4 and ref.name.endswith((".attn.bias", ".attention.bias", ".masked_bias"))
    return is_mask or ref.dtype in _COUNTING or ref.name.endswith(_BUFFERS)


def _known_weights(base: Base) -> dict[str, Weight]:
    """Weights of the configuration's architecture by the names that `base` has for them; those of another shape not.

    A file may leave the body's prefix out: GPT-2's says ``h.0.attn…`` for ``transformer.h.0.attn…``.
    """
    if not _is_known(base.configuration):
        return {}
    try:
        weights = architecture_of(base.configuration).weights
    except CompatibilityError:
        return {}
    found = {}
    for weight in weights:
        short = weight.name.partition(".")[2]
        name = weight.name if weight.name in base.tensors or short not in base.tensors else short
        ref = base.tensors.get(name)
        if (ref is None and weight.is_tied) or (ref is not None and ref.shape == weight.shape):
            found[name] = replace(weight, name=name)
    return found


def _stored_weight(name: str, shape: tuple[int, ...], known: Weight | None) -> Weight:
    """What a tensor of a file is: as its architecture says, otherwise by its name and its number of sides."""
    if known is not None:
        return known
    module = name.removesuffix(".weight")
    last = module.rpartition(".")[2]
    is_weight = name.endswith(".weight")
    if len(shape) == 3 and "experts" in name.split("."):
        kind = WeightKind.EXPERTS
    elif not is_weight or len(shape) < 2:
        kind = WeightKind.OTHER
    elif len(shape) > 2:
        kind = WeightKind.CONV
    elif last in _EMBEDDINGS or _EMBEDDING.search(last):
        kind = WeightKind.EMBEDDING
    elif last in _CONV1D and ".h." in f".{module}":
        kind = WeightKind.CONV1D
    else:
        kind = WeightKind.LINEAR
    is_named = module in _OUTPUTS or module.partition(".")[0] in _CLASSIFIERS or last in _LANGUAGE_OUTPUTS
    is_output = kind is WeightKind.LINEAR and is_named
    return Weight(name, shape, kind, is_output=is_output)


def _matrices(weights: Iterable[Weight]) -> tuple[Matrix, ...]:
    ordered = sorted(weights, key=lambda weight: natural_key(weight.name))
    return tuple(
        Matrix(
            weight.module,
            *weight.sides,
            weight.shape,
            weight.kind,
            weight.matrices,
            is_output=weight.is_output,
            fused=weight.fused,
        )
        for weight in ordered
        if weight.kind is not WeightKind.OTHER
    )
