"""What is trained: every figure that is a choice."""

from __future__ import annotations

from dataclasses import dataclass, field

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Training:
    """Hyper-parameters of one training.

    Parameters
    ----------
    epochs : passes over the training split
    batch_rows : utterances in a step
    learning_rate : highest rate; AdamW, 5 % of the steps rising, then half a cosine to zero
    seed : of the initial weights and the order
    """

    epochs: float
    batch_rows: int
    learning_rate: float
    seed: int
    weight_decay: float = 0.0


@dataclass(frozen=True)
class Sample:
    """One adapter, or where `rank` is None one full fine-tune, of the base."""

    name: str
    task: str
    training: Training
    rank: int | None = 8
    alpha: float = 16
    dtype: str = "float32"
    use_rslora: bool = False
    use_dora: bool = False
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)


PRETRAINING = Training(epochs=4, batch_rows=64, learning_rate=1.5e-3, seed=0, weight_decay=0.05)
_LORA = Training(epochs=2.5, batch_rows=64, learning_rate=3e-3, seed=0)
_OTHER = Training(epochs=2.5, batch_rows=64, learning_rate=3e-3, seed=1)

SAMPLES = (
    Sample("banking77-r8-seed0", "banking77", _LORA),
    Sample("banking77-r8-seed1", "banking77", _OTHER),
    Sample("banking77-r64-seed0", "banking77", _LORA, rank=64, alpha=128, dtype="bfloat16"),
    Sample("snips-r8", "snips", Training(epochs=1, batch_rows=64, learning_rate=3e-3, seed=0)),
    Sample("banking77-rslora", "banking77", _LORA, rank=16, alpha=8, dtype="float16", use_rslora=True),
    Sample("banking77-dora", "banking77", _LORA, use_dora=True),
    Sample(
        "banking77-patterns",
        "banking77",
        _LORA,
        rank_pattern={"down_proj": 16, r"layers\.0\.self_attn\.[qk]_proj": 4},
        alpha_pattern={"down_proj": 32, "v_proj": 8},
    ),
    Sample(
        "finetuned-banking77",
        "banking77",
        Training(2, 64, 6e-4, seed=0, weight_decay=0.01),
        rank=None,
        dtype="bfloat16",
    ),
)
# What the data is and under which terms its makers give it away.
SOURCES = {
    "banking77": ("PolyAI-LDN/task-specific-datasets", "CC-BY-4.0", "Casanueva et al. 2020, arXiv 2003.04807"),
    "snips": ("sonos/nlu-benchmark", "CC0-1.0", "Coucke et al. 2018, arXiv 1805.10190"),
    "clinc150": ("clinc/oos-eval", "CC-BY-3.0", "Larson et al. 2019, arXiv 1909.02027"),
}
