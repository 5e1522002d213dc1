"""An adapter against random factors of the same norms."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from lora_lab.domain.adapter import Effect
from lora_lab.domain.modules import select_modules
from lora_lab.domain.progress import stop_if_cancelled
from lora_lab.domain.report import Finding
from lora_lab.errors import AdapterError, quoted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lora_lab.domain.adapter import Adapter, Delta
    from lora_lab.extension.contracts import AnalysisContext

NO_NOISE_LEVEL: Final = Finding(
    "no_noise_level",
    "A noise threshold of ΔW = s·B·A itself is ill-posed, the median of its min(out, in) singular values being zero: "
    "the comparison is with random factors of the same norms instead.",
)


def rows(adapter: Adapter, context: AnalysisContext) -> Iterator[dict[str, Any]]:
    """Yield one row for each module: its singular values beside those that random factors would make.

    With β² = ‖B‖_F²/(out·r) and α² = ‖A‖_F²/(r·in) the variances of the entries, random factors of the same norms have
    |s|·β·α times the singular values of standard Gaussian ones. The comparison depends on the norms of the two factors,
    so it is one for the factors as stored: (B·Q, Qᵀ·A) with orthonormal Q and (c·B, A/c) compare alike, other
    factorisations of the same ΔW need not.
    """
    from lora_lab.linalg.spectra import Pair
    from lora_lab.linalg.streaming import stream_singular_values

    deltas = _deltas(adapter, context.modules)

    def pairs() -> Iterator[Pair]:
        for delta, factors in context.reader.factors_of(deltas):
            stop_if_cancelled(context.observer)
            yield Pair(delta.module, factors.lora_A, factors.lora_B, factors.scaling)

    for delta, (pair, spectrum) in zip(deltas, stream_singular_values(pairs(), device=context.device), strict=True):
        yield _row(delta, pair, spectrum.tolist(), context)


def count(adapter: Adapter, context: AnalysisContext) -> int:
    """How many rows there will be."""
    return len(_deltas(adapter, context.modules))


def _row(delta: Delta, pair: Any, spectrum: list[float], context: AnalysisContext) -> dict[str, Any]:
    from lora_lab_rmt.random_factors import random_spectrum

    (outputs, rank), inputs = pair.lora_B.shape, pair.lora_A.shape[1]
    law = random_spectrum(
        outputs,
        rank,
        inputs,
        draws=context.parameters["draws"],
        quantile=context.parameters["quantile"],
        seed=context.seed,
    )
    unit = abs(pair.scaling) * _entry(pair.lora_B) * _entry(pair.lora_A)
    expected = [unit * value for value in law.expected]
    upper = [unit * value for value in law.upper]
    learnt = sum(value > upper[0] for value in spectrum) if spectrum else 0
    return {
        "module": delta.module,
        "shape": list(delta.shape),
        "rank": delta.rank,
        "learnt": learnt,
        "excess_energy": excess_energy(spectrum, expected, learnt),
        "singular_values": spectrum,
        "random_expected": expected,
        "random_upper": upper,
        "edge": upper[0] if upper else None,
        "exceeding": [
            str(k) for k, (value, limit) in enumerate(zip(spectrum, upper, strict=True), start=1) if value > limit
        ],
    }


def excess_energy(spectrum: Sequence[float], level: Sequence[float], learnt: int) -> float | None:
    """Σ_{k ≤ learnt} (σ_k² − level_k²) / Σσ², None of a zero ΔW.

    Examples
    --------
    >>> excess_energy([2.0, 1.0], [1.0, 1.0], 1)
    0.6
    """
    largest = spectrum[0] if spectrum else 0.0
    if not largest:
        return None
    energies = [(value / largest) ** 2 for value in spectrum]
    excess = (energy - (chance / largest) ** 2 for energy, chance in zip(energies[:learnt], level, strict=False))
    return math.fsum(excess) / math.fsum(energies)


def _entry(factor: Any) -> float:
    """Root of the mean square of a factor's entries, in float64."""
    import torch

    from lora_lab.linalg.threads import one_thread

    with one_thread():
        norm = float(torch.linalg.vector_norm(factor.to(torch.float64)))
    return norm / math.sqrt(factor.numel())


def _deltas(adapter: Adapter, globs: Sequence[str]) -> tuple[Delta, ...]:
    for feature in adapter.features:
        if feature.effect is Effect.REFUSED:
            raise AdapterError(
                f"ΔW of {quoted(adapter.name)} cannot be computed from its files: {feature.title}. {feature.detail}"
            )
    chosen = set(select_modules(adapter.modules, globs))
    if globs and not chosen:
        raise AdapterError(f"No module of {quoted(adapter.name)} matches {', '.join(map(quoted, globs))}.")
    return tuple(delta for delta in adapter.deltas if delta.module in chosen)
