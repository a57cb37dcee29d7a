"""Which tokens weigh what, and that weights are scaled values or scaled shares."""

from __future__ import annotations

import pytest
import torch
from lethe.erasers.errors import ConceptError, SettingError
from lethe.erasers.words import WordPart, parse_words
from toy_tower import ToyModel

TOWER = ToyModel().tower()


def weights(prompt: str, *words: tuple[str, float], end: float = 1.0) -> list[float] | None:
    found = WordPart(TOWER, words, end).read([TOWER.ids(prompt)])
    return None if found is None else found.tolist()


def test_every_place_of_a_word_gets_its_weight() -> None:
    assert weights("a red ball and a ball", ("ball", 0.2)) == pytest.approx([1, 1, 1, 0.2, 1, 1, 0.2, *[1] * 5])
    assert weights("a red ball", ("red ball", 0.0), ("a", 2.0), end=0.5) == [1, 2, 0, 0, *[0.5] * 8]
    assert weights("a red tree", ("ball", 0.2), end=0.5) is None


def test_chunks_without_the_word_are_left_alone() -> None:
    part = WordPart(TOWER, (("ball", 0.0),), end_weight=0.0)
    found = part.read([TOWER.ids("tree"), TOWER.ids("ball")])
    assert found is not None and found.tolist() == [1] * 13 + [0] * 11


def test_scaled_values_are_scaled_probabilities_and_a_bias_renormalises() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(n, 5, generator=generator, dtype=torch.float64) for n in (3, 4, 4))
    c = torch.tensor([1.0, 0.3, 1.0, 2.0], dtype=torch.float64)
    logits = q @ k.T / 5**0.5
    scaled = (logits.softmax(-1) * c) @ v
    assert torch.allclose(logits.softmax(-1) @ (c[:, None] * v), scaled)
    shares = logits.softmax(-1) * c
    assert torch.allclose((logits + c.log()).softmax(-1), shares / shares.sum(-1, keepdim=True))


def test_lines_become_words() -> None:
    assert parse_words(" ball: 0.2\n\nred cat \n9:30 clock: -1") == (
        ("ball", 0.2),
        ("red cat", 0.0),
        ("9:30 clock", -1.0),
    )


def test_unknown_words_and_negative_shares_are_refused() -> None:
    with pytest.raises(ConceptError, match="reads nothing"):
        WordPart(TOWER, ((" ", 0.5),))
    with pytest.raises(SettingError, match="add up to 1"):
        WordPart(TOWER, (("ball", -1.0),), renormalise=True)
