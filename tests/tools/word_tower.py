"""A text encoder whose features are its words, one-hot, and a gate that knows how like a concept each word is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from lethe.erasers.gates.discriminant import Discriminant
from lethe.erasers.model import TextTower, Token
from lethe.erasers.rewrite import Entry, Wordbook
from torch import Tensor, nn

WIDTH, TOKENS, START, END = 40, 12, 38, 39


class WordTower:
    """Words get ids as they come; a vector among the tokens is its own feature. Counts the rows it encodes."""

    def __init__(self) -> None:
        self.words = dict[str, int]()
        self.rows = 0

    def ids(self, prompt: str) -> list[int]:
        parts = prompt.split()
        ids = [self.words.setdefault(part, len(self.words)) for part in parts]
        return [START, *ids, *[END] * (TOKENS - 1 - len(ids))]

    def encode(self, rows: Sequence[Sequence[Token]]) -> tuple[Tensor, Tensor]:
        self.rows += len(rows)
        states = torch.stack([torch.stack([_feature(token) for token in row]) for row in rows])
        return states, states.mean(1)

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(word for number in ids for word, own in self.words.items() if own == number)

    def tower(self) -> TextTower:
        return TextTower("clip_l", nn.Identity(), self.ids, self.encode, self.decode, lambda name: torch.zeros(1), END)


def wordbook_of(
    tower: WordTower, entries: Sequence[tuple[str, str]], likeness: Mapping[str, float], threshold: float = 0.5
) -> Wordbook:
    """Names with replacements, and what the gate gives each word for the first name; 0 for all others."""
    own = tower.tower()
    reader = torch.zeros(len(entries), WIDTH, dtype=torch.float64)
    for word, value in likeness.items():
        reader[0, own.content(word)[0]] = value
    found = tuple(Entry(own.content(name), own.content(other)) for name, other in entries)
    return Wordbook(
        own,
        Discriminant(
            torch.zeros(WIDTH, dtype=torch.float64), reader, torch.arange(len(entries)), torch.tensor([1]), threshold
        ),
        found,
    )


def _feature(token: Token) -> Tensor:
    return token if isinstance(token, Tensor) else torch.eye(WIDTH)[token]
