"""What an analysis of ΔW = scaling·B·A covers of an adapter, and what it has to say about the rest."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from lora_lab.domain.adapter import Adapter, Effect, SavedRole
from lora_lab.domain.modules import select_modules
from lora_lab.domain.report import Finding
from lora_lab.errors import AdapterError, CompatibilityError, quoted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lora_lab.domain.adapter import Delta, Feature
    from lora_lab.domain.base import Base
    from lora_lab.extension.contracts import AnalysisContext

# What the general sentence would leave unsaid.
_SENTENCES: Final = {
    "dora": "DoRA: the spectrum is of scaling·B·A; the magnitudes change the whole weight and need the base.",
    "lora_bias": "Biases of lora_B: they are added to the base's biases, not to ΔW, and are in no number here.",
}
_MOVED: Final = "pissa"
_ROLES: Final = {
    SavedRole.MODULES_TO_SAVE: "replace weights of the base",
    SavedRole.BIAS: "replace biases of the base",
    SavedRole.TRAINABLE_TOKENS: "change single rows of an embedding",
    SavedRole.EMBEDDING_LAYER: "replace embedding layers of the base",
}


def adapter_of(context: AnalysisContext) -> Adapter:
    """The one adapter that the context is about.

    Raises
    ------
    AdapterError
        it is about a full checkpoint, or about an adapter whose ΔW cannot be computed from its files.
    """
    subject = context.subjects[0]
    if not isinstance(subject, Adapter):
        raise _no_adapter(subject)
    refuse(subject)
    return subject


def adapter_for_base(context: AnalysisContext) -> Adapter:
    """The one adapter that the context is about, where its base is at hand too.

    An adapter that began from a base that PiSSA moved is let through: its change is then known, see :func:`is_moved`.

    Raises
    ------
    AdapterError
        as :func:`adapter_of`, for any other reason.
    """
    subject = context.subjects[0]
    if not isinstance(subject, Adapter):
        raise _no_adapter(subject)
    refuse(subject, has_base=True)
    return subject


def is_moved(adapter: Adapter) -> bool:
    """Whether training began from W − U_r S_r V_rᵀ; a start by a randomised decomposition cannot be found again."""
    start = adapter.configuration.get("init_lora_weights")
    return isinstance(start, str) and start.lower() == _MOVED


def change_findings(adapter: Adapter) -> Iterator[Finding]:
    """Yield what the adapter itself says, and what it does beyond ΔW, where the base is at hand to compute it."""
    yield from adapter.findings
    for finding in outside_findings(adapter):
        if finding.code == "dora":
            finding = Finding("dora", "DoRA: what is compared is the real W′ = m ⊙ (W+ΔW)/‖W+ΔW‖, magnitudes included.")
        yield finding
    if is_moved(adapter):
        yield Finding(
            _MOVED,
            "PiSSA: ΔW is counted from the original base, scaling·B·A − U_r S_r V_rᵀ with the base's first r singular "
            "triplets; with any other base it means nothing.",
        )


def _no_adapter(subject: Base) -> AdapterError:
    return AdapterError(
        f"{quoted(subject.name)} is a full checkpoint, expected an adapter.",
        hint="An analysis that takes models is listed by: lora-lab analyses",
    )


def adapters_of(context: AnalysisContext) -> tuple[Adapter, ...]:
    """The adapters that the context is about, each of which has a ΔW of its own.

    Raises
    ------
    AdapterError
        as :func:`adapter_of`, for any of them.
    """
    adapters = []
    for subject in context.subjects:
        if not isinstance(subject, Adapter):
            raise _no_adapter(subject)
        refuse(subject)
        adapters.append(subject)
    return tuple(adapters)


def base_of(context: AnalysisContext) -> Base:
    """The base model, which holds weights.

    Raises
    ------
    CompatibilityError
        it is a configuration alone, or there is none.
    """
    base = context.base
    if base is None or not base.tensors:
        what = "no base model was given" if base is None else f"{quoted(base.name)} is a configuration without weights"
        raise CompatibilityError(
            f"This compares an adapter with the weights of its base model, and {what}.", hint="Pass --base FOLDER."
        )
    return base


def refuse(adapter: Adapter, *, has_base: bool = False) -> None:
    """Raise AdapterError when a feature makes ΔW unknowable from the adapter's own files, or with the base too."""
    refused = [feature for feature in adapter.features if feature.effect is Effect.REFUSED]
    is_known_with_base = is_moved(adapter) and [feature.id for feature in refused] == [_MOVED]
    if not refused or (has_base and is_known_with_base):
        return
    raise AdapterError(
        f"ΔW of {quoted(adapter.name)} cannot be computed from its files: {_said(refused[0])}",
        hint="amplify, intruders, combine and resize compute it with --base, the original model."
        if is_known_with_base
        else "lora-lab inspect shows what the files say.",
    )


def selected(adapter: Adapter, globs: Sequence[str]) -> tuple[Delta, ...]:
    """Deltas that one of `globs` matches, all without globs; AdapterError when there are globs and none matches."""
    chosen = set(select_modules(adapter.modules, globs))
    if globs and not chosen:
        first = adapter.modules[0] if adapter.modules else "none"
        raise AdapterError(
            f"No module of {quoted(adapter.name)} matches {', '.join(quoted(glob) for glob in globs)}, "
            f"expected a name such as {quoted(first)}.",
            hint="lora-lab inspect lists the modules.",
        )
    return tuple(delta for delta in adapter.deltas if delta.module in chosen)


def outside_findings(adapter: Adapter) -> Iterator[Finding]:
    """Yield one finding for everything the adapter does besides ΔW = scaling·B·A."""
    told = set()
    for feature in adapter.features:
        if feature.effect is Effect.OUTSIDE:
            told.add(feature.id)
            yield Finding(feature.id, _SENTENCES.get(feature.id) or _said(feature))
    for role, count in Counter(saved.role for saved in adapter.saved).items():
        if role.value not in told:
            subject = f"{count} saved tensor" + ("s" if count > 1 else "")
            yield Finding(role.value, f"{subject} of role {role.value} {_ROLES[role]}: not part of ΔW.")


def _said(feature: Feature) -> str:
    return f"{feature.title}: {feature.detail}" if feature.detail else f"{feature.title}."
