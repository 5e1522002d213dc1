"""``training_report.json`` and ``README.md``: every figure comes from the training that made the files."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from plan import PRETRAINING, SAMPLES, SOURCES

from lora_lab.storage.atomic import write_bytes

if TYPE_CHECKING:
    from pathlib import Path

_HEAD = """# Sample adapters

A small decoder in the Llama layout, adapters trained from it, and one full fine-tune, all made by `train.py` from
public data. This page is written by that script; no figure in it is typed by hand.

`base/` is a language model of the utterances in the training splits of three intent data sets; it has never seen an
intent's name after an utterance. Each adapter teaches it a task as text, `utterance => intent`, with the loss on the
intent alone. The base stays frozen, in the very values that `base/` stores.

* PEFT loads every adapter, transformers loads `base/`, its tokenizer and `finetuned-banking77/`.
* `banking77-r8-seed0` and `banking77-r8-seed1` share the data, not the initial factors nor the order of the data.
* Factors are stored in float32, float16 or bfloat16, as the table says.
"""
_DATA = """## Data

Not part of this folder. Text is lower-cased; labels become words (`card_arrival`: `card arrival`). The test splits are
used for the figures below and for nothing else.

| set | source | licence | published with | train | test |
|---|---|---|---|---|---|
"""
_HELD = """## Held-out figures

Loss: mean -ln p per token of the intent and its end, over the test split, in float32, on the files as stored.
Accuracy: share of the test split for which greedy decoding writes the intent and its end exactly; greedy decoding does
so if and only if each of these tokens is the likeliest given the true ones before it, which is what is counted.
Majority: always answering the training split's most frequent intent.

| sample | task | loss, base | loss | accuracy, base | accuracy | majority | parameters |
|---|---|---|---|---|---|---|---|
"""
_HYPER = """## Hyper-parameters

AdamW, β = (0.9, 0.98), gradients clipped to norm 1, the rate rising over 5 % of the steps, then half a cosine to zero;
bfloat16 autocast. A ~ N(0, 1/r²), B = 0. Targets of every adapter: all seven projections of every layer.

| sample | r | alpha | scaling | stored as | special | epochs | batch | rate | seed | steps | seconds |
|---|---|---|---|---|---|---|---|---|---|---|---|
"""
_AGAIN = """## Again

    python sample_adapters/train.py --data DATA

`DATA` holds `banking77/`, `snips/` and `clinc150/`, each with `train.tsv` and `test.tsv` of `label TAB text`. What is
there already, with the hashes below, is not trained again; `--force` trains everything anew.

## SHA-256

"""


def sha256_of(path: Path) -> str:
    """Hash of a file, as hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def hashes(folder: Path, root: Path) -> dict[str, str]:
    """Hash of every file under `folder`, by its path from `root`."""
    return {str(path.relative_to(root)): sha256_of(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def is_done(record: dict[str, Any] | None, root: Path) -> bool:
    """Whether every file of a finished training is still there, unchanged."""
    return record is not None and all(
        (root / name).is_file() and sha256_of(root / name) == wanted for name, wanted in record["sha256"].items()
    )


def failures(report: dict[str, Any]) -> list[str]:
    """Trainings whose held-out loss did not fall to under half of what it was, in words."""
    found = []
    for name, record in {"base": report["base"], **report["samples"]}.items():
        before, after = record["loss_before"], record["loss"]
        if not after < before / (1.5 if name == "base" else 2):
            found.append(f"{name}: held-out loss {after:.3f}, before the training {before:.3f}")
    return found


def write_readme(report: dict[str, Any], root: Path) -> None:
    """Write README.md from the report."""
    page = [_HEAD, base_lines(report["base"]), _DATA]
    for name, (source, licence, paper) in SOURCES.items():
        count = report["data"][name]
        page.append(f"| {name} | github.com/{source} | {licence} | {paper} | {count['train']} | {count['test']} |\n")
    page.append(f"\n{_HELD}")
    page.extend(held_line(name, record) for name, record in report["samples"].items())
    page.append(f"\n{_HYPER}")
    page.extend(hyper_line(sample, report["samples"][sample.name]) for sample in SAMPLES)
    page.append(f"\n{_AGAIN}")
    every = {**report["base"]["sha256"], **{k: v for r in report["samples"].values() for k, v in r["sha256"].items()}}
    every["training_report.json"] = sha256_of(root / "training_report.json")
    page.extend(f"    {digest}  {name}\n" for name, digest in every.items())
    write_bytes(root / "README.md", "".join(page).encode(), overwrite=True)


def base_lines(record: dict[str, Any]) -> str:
    """The base in a few lines."""
    shape, training = record["shape"], PRETRAINING
    heads = f"{shape['heads']} query and {shape['key_value_heads']} key-value heads"
    return f"""
## Base

{record["parameters"]:,} parameters in bfloat16, two shards: {shape["layers"]} layers, width {shape["hidden"]}, {heads},
MLP {shape["intermediate"]}, byte-level BPE of {shape["vocabulary"]} tokens learned from the same text, output tied to
the embedding. Trained for {training.epochs:g} epochs ({record["steps"]} steps of {training.batch_rows} utterances, rate
{training.learning_rate:g}, weight decay {training.weight_decay:g}, seed {training.seed}, {record["seconds"]:.0f} s).
Held-out loss per token: {record["loss_before"]:.3f} before, {record["loss"]:.3f} after.

"""


def held_line(name: str, record: dict[str, Any]) -> str:
    """One line of the table of results."""
    return (
        f"| {name} | {record['task']} | {record['loss_before']:.3f} | {record['loss']:.3f} "
        f"| {record['accuracy_before']:.1%} | {record['accuracy']:.1%} | {record['majority']:.1%} "
        f"| {record['parameters']:,} |\n"
    )


def hyper_line(sample: Any, record: dict[str, Any]) -> str:
    """One line of the table of hyper-parameters."""
    training = sample.training
    special = [word for word, on in {"rsLoRA": sample.use_rslora, "DoRA": sample.use_dora}.items() if on]
    special += [f"rank_pattern `{sample.rank_pattern}`"] if sample.rank_pattern else []
    special += [f"alpha_pattern `{sample.alpha_pattern}`"] if sample.alpha_pattern else []
    special += [f"weight decay {training.weight_decay:g}"] if training.weight_decay else []
    factors = "all weights | | " if sample.rank is None else f"{sample.rank} | {sample.alpha:g} | {record['scaling']:g}"
    return (
        f"| {sample.name} | {factors} | {sample.dtype} | {', '.join(special)} | {training.epochs:g} "
        f"| {training.batch_rows} | {training.learning_rate:g} | {training.seed} | {record['steps']} "
        f"| {record['seconds']:.0f} |\n"
    )
