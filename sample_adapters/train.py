"""Train the sample base, adapters and fine-tune: ``python sample_adapters/train.py --data DIR [--out DIR] [--force]``.

Plain torch on the CPU with ``lora_lab.live``; under three quarters of an hour on two cores. Every finished training is
recorded with the hashes of its files and skipped on the next run, so an interrupted run goes on where it stopped.
Exits with 1 where a training failed: where held-out loss did not fall well below what it was before.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from math import sqrt
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from checkpoints import load_model, load_tokenizer, save_model, save_tokenizer
from data import batches, majority_accuracy, read_pairs, score, task_rows, training_loss, utterance_rows
from model import Decoder, Shape
from plan import LINEAR, PRETRAINING, SAMPLES, SOURCES, Sample, Training
from report import failures, hashes, is_done, write_readme
from tokenizer import learn

from lora_lab.live import LoraConfig, LoraModel, load_adapter, save_adapter, train
from lora_lab.storage.atomic import write_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from data import Row
    from torch import nn

Splits = dict[str, dict[str, list[tuple[str, str]]]]


def main() -> int:
    """Train whatever is not there yet, then write the report and the README."""
    options = arguments()
    torch.set_num_threads(options.threads)
    out, path = options.out, options.out / "training_report.json"
    data: Splits = {
        name: {split: read_pairs(options.data / name / f"{split}.tsv") for split in ("train", "test")}
        for name in SOURCES
    }
    report: dict[str, Any] = {"data": {}, "base": None, "samples": {}}
    if path.exists() and not options.force:
        report = json.loads(path.read_text(encoding="utf-8"))
    report["data"] = {name: {split: len(pairs) for split, pairs in sets.items()} for name, sets in data.items()}

    shape = Shape()
    if not is_done(report["base"], out):
        report |= {"base": pretrained(data, shape, out, options.share), "samples": {}}
        write_json(path, report, overwrite=True)
    missing = [sample for sample in SAMPLES if not is_done(report["samples"].get(sample.name), out)]
    for name, record in in_processes(missing, data, shape, options):
        report["samples"][name] = record
        write_json(path, report, overwrite=True)
    report["samples"] = {sample.name: report["samples"][sample.name] for sample in SAMPLES}
    write_json(path, report, overwrite=True)
    write_readme(report, out)
    failed = failures(report)
    for line in failed:
        print(f"Failed training: {line}", file=sys.stderr)
    return 1 if failed else 0


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with banking77/, snips/ and clinc150/")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent, help="default: beside the script")
    parser.add_argument("--force", action="store_true", help="train again what is there already")
    parser.add_argument("--threads", type=int, default=2, help="torch threads; default 2")
    parser.add_argument("--jobs", type=int, default=2, help="samples trained side by side; default 2")
    parser.add_argument("--share", type=float, default=1.0, help="share of the steps to take, for a trial; default 1")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    return options


def in_processes(
    samples: list[Sample], data: Splits, shape: Shape, options: argparse.Namespace
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Train several samples side by side, each with its share of the threads: small matrices gain little from two."""
    threads = max(1, options.threads // options.jobs)
    tokenizer, model = load_tokenizer(options.out / "base"), load_model(options.out / "base", shape)
    before = {
        task: score(model, task_rows(data[task]["test"], tokenizer, shape.longest))
        for task in sorted({sample.task for sample in samples})
    }
    with ProcessPoolExecutor(options.jobs, get_context("spawn"), torch.set_num_threads, (threads,)) as pool:
        running = {
            pool.submit(sampled, each, data[each.task], before[each.task], shape, options): each.name
            for each in samples
        }
        for done in as_completed(running):
            yield running[done], done.result()


def pretrained(data: Splits, shape: Shape, out: Path, share: float) -> dict[str, Any]:
    """Learn the tokenizer, train the base as a language model of the training splits, store both, and score it."""
    texts = [pair for sets in data.values() for pair in sets["train"]]
    tokenizer = learn([text for _, text in texts], shape.vocabulary)
    save_tokenizer(tokenizer, out / "base", shape.longest)
    rows = utterance_rows(texts, tokenizer, shape.longest)
    held = utterance_rows([pair for sets in data.values() for pair in sets["test"]], tokenizer, shape.longest)
    generator = torch.Generator().manual_seed(PRETRAINING.seed)
    model = Decoder(shape, generator)
    before = score(model, held)
    record = fitted("base", model, model.parameters(), rows, PRETRAINING, generator, share)
    save_model(model, out / "base", shards=2)
    return {
        "shape": asdict(shape),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "training": asdict(PRETRAINING),
        **record,
        "loss_before": before["loss"],
        "loss": score(load_model(out / "base", shape), held)["loss"],
        "sha256": hashes(out / "base", out),
    }


def sampled(
    sample: Sample,
    task: dict[str, list[tuple[str, str]]],
    before: dict[str, float],
    shape: Shape,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Train one sample from the stored base, store it, and score what was stored."""
    out, tokenizer = options.out, load_tokenizer(options.out / "base")
    rows, held = (task_rows(task[split], tokenizer, shape.longest) for split in ("train", "test"))
    model = load_model(out / "base", shape)
    make = full_fine_tune if sample.rank is None else adapter
    record, after = make(sample, model, rows, held, out, options.share)
    print(f"{sample.name}: {before} -> {after}", file=sys.stderr)
    return {
        "task": sample.task,
        "plan": asdict(sample),
        **record,
        "loss_before": before["loss"],
        "loss": after["loss"],
        "accuracy_before": before["accuracy"],
        "accuracy": after["accuracy"],
        "majority": majority_accuracy(task["train"], task["test"]),
        "sha256": hashes(out / sample.name, out),
    }


def adapter(
    sample: Sample, model: Decoder, rows: list[Row], held: list[Row], out: Path, share: float
) -> tuple[dict[str, Any], dict[str, float]]:
    """Train one adapter on the frozen base; score it as loaded from its files onto the same base."""
    assert sample.rank is not None
    config = LoraConfig(
        LINEAR,
        rank=sample.rank,
        alpha=sample.alpha,
        use_rslora=sample.use_rslora,
        use_dora=sample.use_dora,
        rank_pattern=sample.rank_pattern,
        alpha_pattern=sample.alpha_pattern,
        base_model_name_or_path="base",
        task_type="CAUSAL_LM",
    )
    generator = torch.Generator().manual_seed(sample.training.seed)
    lora = LoraModel(model)
    lora.attach("trained", config, generator=generator)
    record = fitted(sample.name, model, lora.parameters("trained"), rows, sample.training, generator, share)
    record["parameters"] = lora.parameter_count("trained")
    record["scaling"] = sample.alpha / (sqrt(sample.rank) if sample.use_rslora else sample.rank)
    save_adapter(lora, "trained", out / sample.name, dtype=getattr(torch, sample.dtype), overwrite=True)
    load_adapter(lora, "stored", out / sample.name)
    return record, score(model, held)


def full_fine_tune(
    sample: Sample, model: Decoder, rows: list[Row], held: list[Row], out: Path, share: float
) -> tuple[dict[str, Any], dict[str, float]]:
    """Train every weight; score the model as stored."""
    generator = torch.Generator().manual_seed(sample.training.seed)
    record = fitted(sample.name, model, model.parameters(), rows, sample.training, generator, share)
    record["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    save_model(model, out / sample.name, shards=1)
    return record, score(load_model(out / sample.name, model.shape), held)


def fitted(
    name: str,
    model: nn.Module,
    parameters: Iterable[nn.Parameter],
    rows: list[Row],
    training: Training,
    generator: torch.Generator,
    share: float,
) -> dict[str, Any]:
    """Run one training and say how it went: steps, seconds, mean loss of the first and last twentieth."""
    steps = max(2, round(share * training.epochs * len(rows) / training.batch_rows))
    started = time.monotonic()
    losses = train(
        parameters,
        batches(rows, training.batch_rows, generator),
        training_loss(model),
        steps=steps,
        learning_rate=training.learning_rate,
        warmup_steps=steps // 20,
        weight_decay=training.weight_decay,
        watch=progress(name, steps),
    )
    part = max(1, steps // 20)
    return {
        "steps": steps,
        "seconds": round(time.monotonic() - started, 1),
        "train_loss_first": sum(losses[:part]) / part,
        "train_loss_last": sum(losses[-part:]) / part,
    }


def progress(name: str, steps: int) -> Callable[[int, float], None]:
    """A watcher that writes count, loss, rate and time left to stderr, at most every five seconds."""
    started = shown = time.monotonic()

    def watch(step: int, loss: float) -> None:
        nonlocal shown
        now = time.monotonic()
        if now - shown >= 5 or step == steps:
            shown = now
            rate = step / (now - started)
            left = (steps - step) / rate
            print(f"{name}: {step}/{steps}, loss {loss:.3f}, {rate:.1f} steps/s, {left:.0f} s left", file=sys.stderr)

    return watch


if __name__ == "__main__":
    sys.exit(main())
