"""A byte-level BPE tokenizer of lower-case text, learned from a corpus and written as ``tokenizer.json``.

Text is lower-cased, cut into words that keep the blank before them, and turned into bytes; every byte has a printable
stand-in (the alphabet of GPT-2), so nothing is ever unknown. Merges then join the most frequent neighbours.
Source: Sennrich, Haddow & Birch 2016 (arXiv 1508.07909), algorithm 1; GPT-2 for the bytes.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from typing import Any

PAD, BOS, EOS = "<pad>", "<s>", "</s>"
SPECIAL = (PAD, BOS, EOS)
WORD = r" ?[a-z]+| ?[0-9]| ?[^\sa-z0-9]+|\s+"


def byte_alphabet() -> dict[int, str]:
    """Printable stand-in of each byte: itself where it is printable, else a character from 256 on."""
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    shifted = [byte for byte in range(256) if byte not in kept]
    return {byte: chr(byte) for byte in kept} | {byte: chr(256 + place) for place, byte in enumerate(shifted)}


class Tokenizer:
    """Encodes text with learned merges.

    Parameters
    ----------
    merges : pairs in the order in which they were learned; the ids follow the special tokens and the 256 bytes
    """

    def __init__(self, merges: list[tuple[str, str]]) -> None:
        self.merges = merges
        self.alphabet = byte_alphabet()
        tokens = [*SPECIAL, *sorted(self.alphabet.values()), *(left + right for left, right in merges)]
        self.ids = {token: place for place, token in enumerate(tokens)}
        self.rank_of_pair = {pair: place for place, pair in enumerate(merges)}
        self.known: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without any special token."""
        return [token for word in re.findall(WORD, text.lower()) for token in self._word(word)]

    def decode(self, tokens: list[int]) -> str:
        """Text of token ids; special tokens are left out."""
        names = list(self.ids)
        bytes_of = {character: byte for byte, character in self.alphabet.items()}
        joined = "".join(names[token] for token in tokens if token >= len(SPECIAL))
        return bytes(bytes_of[character] for character in joined).decode("utf-8", errors="replace")

    def _word(self, word: str) -> list[int]:
        if word not in self.known:
            parts = [self.alphabet[byte] for byte in word.encode()]
            while len(parts) > 1:
                ranked = [(self.rank_of_pair.get(pair, len(self.merges)), pair) for pair in itertools.pairwise(parts)]
                rank, pair = min(ranked)
                if rank == len(self.merges):
                    break
                parts = merged(parts, pair)
            self.known[word] = [self.ids[part] for part in parts]
        return self.known[word]

    def to_json(self) -> dict[str, Any]:
        """The document ``tokenizer.json`` that the tokenizers library reads."""
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [
                {
                    "id": self.ids[token],
                    "content": token,
                    "single_word": False,
                    "lstrip": False,
                    "rstrip": False,
                    "normalized": False,
                    "special": True,
                }
                for token in SPECIAL
            ],
            "normalizer": {"type": "Lowercase"},
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Split", "pattern": {"Regex": WORD}, "behavior": "Isolated", "invert": False},
                    {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
                ],
            },
            "post_processor": None,
            "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": False,
                "vocab": self.ids,
                "merges": [list(pair) for pair in self.merges],
            },
        }


def learn(texts: list[str], vocabulary_size: int) -> Tokenizer:
    """Learn merges until the vocabulary is full.

    Equally frequent pairs are taken in alphabetical order, so the result depends on the texts alone.
    """
    alphabet = byte_alphabet()
    counts = Counter(word for text in texts for word in re.findall(WORD, text.lower()))
    words = [[alphabet[byte] for byte in word.encode()] for word in counts]
    weights = list(counts.values())
    frequency: Counter[tuple[str, str]] = Counter()
    holders: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
    for place, parts in enumerate(words):
        for pair in itertools.pairwise(parts):
            frequency[pair] += weights[place]
            holders[pair].add(place)
    merges: list[tuple[str, str]] = []
    while len(SPECIAL) + len(alphabet) + len(merges) < vocabulary_size:
        best = min(frequency, key=lambda pair: (-frequency[pair], pair))
        merges.append(best)
        for place in holders.pop(best):
            before, after = words[place], merged(words[place], best)
            for pair in itertools.pairwise(before):
                frequency[pair] -= weights[place]
            for pair in itertools.pairwise(after):
                frequency[pair] += weights[place]
                holders[pair].add(place)
            words[place] = after
        del frequency[best]
    return Tokenizer(merges)


def merged(parts: list[str], pair: tuple[str, str]) -> list[str]:
    """`parts` with each occurrence of `pair`, from the left, joined."""
    joined: list[str] = []
    place = 0
    while place < len(parts):
        if place + 1 < len(parts) and (parts[place], parts[place + 1]) == pair:
            joined.append(parts[place] + parts[place + 1])
            place += 2
        else:
            joined.append(parts[place])
            place += 1
    return joined
