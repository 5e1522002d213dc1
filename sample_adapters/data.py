"""Utterances and intents as token rows: read, batched by length, scored."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import cross_entropy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tokenizer import Tokenizer
    from torch import Tensor, nn

IGNORED = -100
BOS, EOS = 1, 2
_POOL = 32


@dataclass(frozen=True)
class Row:
    """One training text: its tokens, and where the scored part begins."""

    tokens: list[int]
    scored_from: int = 1


Batch = tuple["Tensor", "Tensor"]


def read_pairs(path: Path) -> list[tuple[str, str]]:
    """Pairs of (intent, utterance) from lines of ``label TAB text``; lines without a tab are refused."""
    pairs = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        label, tab, text = line.partition("\t")
        if not tab or not text.strip():
            raise ValueError(f"{path.name} line {number} is not `label TAB text`.")
        pairs.append((label, " ".join(text.split())))
    return pairs


def intent_words(label: str) -> str:
    """A label as words: ``card_arrival`` is ``card arrival``, ``BookRestaurant`` is ``book restaurant``."""
    spaced = "".join(f" {character}" if character.isupper() else character for character in label)
    return " ".join(spaced.replace("_", " ").lower().split())


def utterance_rows(pairs: list[tuple[str, str]], tokenizer: Tokenizer, longest: int) -> list[Row]:
    """Rows for the language model: the utterance alone, all of it scored."""
    return [Row([BOS, *tokenizer.encode(text)[: longest - 2], EOS]) for _, text in pairs]


def task_rows(pairs: list[tuple[str, str]], tokenizer: Tokenizer, longest: int) -> list[Row]:
    """Rows for a task: ``utterance => intent``, only the intent and the end scored."""
    rows = []
    for label, text in pairs:
        answer = [*tokenizer.encode(f" {intent_words(label)}"), EOS]
        arrow = tokenizer.encode(" =>")
        question = [BOS, *tokenizer.encode(text)[: longest - len(answer) - len(arrow) - 1], *arrow]
        rows.append(Row(question + answer, len(question)))
    return rows


def majority_accuracy(train: list[tuple[str, str]], test: list[tuple[str, str]]) -> float:
    """Share of `test` that always answering the most frequent intent of `train` gets right."""
    counts = Counter(label for label, _ in train)
    most = min(counts, key=lambda label: (-counts[label], label))
    return sum(label == most for label, _ in test) / len(test)


def padded(rows: list[Row]) -> Batch:
    """Tokens and targets (batch, longest); padding is on the right, where no token looks."""
    length = max(len(row.tokens) for row in rows)
    tokens = torch.zeros((len(rows), length), dtype=torch.int64)
    targets = torch.full((len(rows), length), IGNORED)
    for place, row in enumerate(rows):
        tokens[place, : len(row.tokens)] = torch.tensor(row.tokens)
        # Position t answers for token t + 1.
        targets[place, row.scored_from - 1 : len(row.tokens) - 1] = torch.tensor(row.tokens[row.scored_from :])
    return tokens, targets


def batches(rows: list[Row], size: int, generator: torch.Generator) -> Iterator[Batch]:
    """Batches without end: each epoch in a new order, rows of like length together so that little is padding."""
    while True:
        order = torch.randperm(len(rows), generator=generator).tolist()
        epoch: list[list[Row]] = []
        for start in range(0, len(order), size * _POOL):
            pool = sorted((rows[place] for place in order[start : start + size * _POOL]), key=lambda r: len(r.tokens))
            epoch.extend(pool[place : place + size] for place in range(0, len(pool), size))
        for place in torch.randperm(len(epoch), generator=generator).tolist():
            yield padded(epoch[place])


def training_loss(model: nn.Module) -> Callable[[Batch], Tensor]:
    """Mean cross entropy of the scored tokens, computed in bfloat16 where that is safe."""

    def loss(batch: Batch) -> Tensor:
        tokens, targets = batch
        scored = targets != IGNORED
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(tokens, scored)
        return cross_entropy(logits.float(), targets[scored])

    return loss


def score(model: nn.Module, rows: list[Row], size: int = 128) -> dict[str, float]:
    """Held-out loss and accuracy, in float32.

    ``loss`` is the mean over scored tokens of -ln p. ``accuracy`` is the share of rows whose scored part greedy
    decoding writes exactly: that is so if and only if every scored token is the likeliest given the true ones before.
    """
    ordered = sorted(rows, key=lambda row: len(row.tokens))
    total, count, exact = 0.0, 0, 0
    with torch.inference_mode():
        for start in range(0, len(ordered), size):
            tokens, targets = padded(ordered[start : start + size])
            scored = targets != IGNORED
            logits, wanted = model(tokens, scored), targets[scored]
            total += cross_entropy(logits, wanted, reduction="sum").item()
            count += len(wanted)
            row_of = scored.nonzero()[:, 0]
            exact += len(tokens) - len(row_of[logits.argmax(-1) != wanted].unique())
    return {"loss": total / count, "accuracy": exact / len(rows)}
