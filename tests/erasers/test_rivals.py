"""Words that keep the places they win: the maps, who loses where, and what a layer then gives, entry by entry."""

from __future__ import annotations

import math

import pytest
import torch
from lethe.erasers.errors import GuardError
from lethe.erasers.nudge import Words
from lethe.erasers.rivals import Rivals, beaten
from lethe.erasers.window import Window
from torch import Tensor

NAMED = (False, True, True, False)
Row = list[float]


def by_hand(maps: list[list[Row]]) -> list[list[list[bool]]]:
    """Where a token of maps [t][h][w] loses, under a Gaussian of sigma 1 with its edges repeated."""
    height, width = len(maps[0]), len(maps[0][0])
    weights = {(i, j): math.exp(-(i * i + j * j) / 2) for i in (-1, 0, 1) for j in (-1, 0, 1)}
    total = sum(weights.values())
    lost = [[[False] * width for _ in range(height)] for _ in maps]
    for y in range(height):
        for x in range(width):
            found = []
            for own in maps:
                near = [
                    weight * own[min(max(y + i, 0), height - 1)][min(max(x + j, 0), width - 1)]
                    for (i, j), weight in weights.items()
                ]
                found.append(sum(near) / total)
            winner = found.index(max(found))
            for t, named in enumerate(NAMED):
                lost[t][y][x] = named and not NAMED[winner]
    return lost


@pytest.mark.parametrize("size", [(5, 3), (1, 1), (2, 7)])
def test_the_concepts_words_lose_where_another_gets_more(size: tuple[int, int]) -> None:
    maps = torch.rand(4, *size, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = beaten(maps, torch.tensor(NAMED))
    assert found.tolist() == by_hand(maps.tolist())
    assert size == (1, 1) or 0 < int(found[1].sum()) < found[1].numel()
    assert torch.equal(found[1], found[2]) and not found[0].any() and not found[3].any()


def test_one_place_does_not_win_by_itself() -> None:
    """The smoothing: a single peak among a rival's is taken from it, and its own best place is not."""
    maps = torch.zeros(2, 5, 5)
    maps[0] = 0.5
    maps[1, 2, 2], maps[1, 4, 3:] = 1.0, 3.0
    found = beaten(maps, torch.tensor((False, True)))[1]
    assert bool(found[2, 2]) and not bool(found[4, 4])


def attended(copies: int, share: float) -> tuple[Tensor, Tensor]:
    """What a row of attention gives, less what it loses; and the same with shares set down by hand."""
    generator = torch.Generator().manual_seed(copies)
    heads, size, tokens, d = 2, (3, 4), 6, 5
    words = Words((1, 2, 3, 4), NAMED, tokens)
    q = torch.randn(12, heads * d, generator=generator)
    k, v = (torch.randn(tokens, heads * d, generator=generator).repeat(copies, 1) for _ in range(2))
    lost = Rivals(share, Window()).lost(q, k, v, heads, None, words, size)
    shares = torch.zeros(heads, 12, tokens, dtype=torch.float64)
    for h in range(heads):
        part = slice(h * d, h * d + d)
        products = [[float(q[p, part] @ k[j, part]) / math.sqrt(d) for j in range(tokens)] for p in range(12)]
        for p, row in enumerate(products):
            total = sum(math.exp(value) for value in row)
            for j, value in enumerate(row):
                shares[h, p, j] = math.exp(value) / total
    value = v[:tokens].double().unflatten(-1, (heads, d))
    plain = torch.einsum("hpt,thd->phd", shares, value).flatten(1)
    who = by_hand(shares.mean(0).T[1:5].unflatten(1, size).tolist())
    for t, rows in enumerate(who):
        for p, loses in enumerate(place for row in rows for place in row):
            shares[:, p, t + 1] *= 1 - share if loses else 1
    return plain - lost.double(), torch.einsum("hpt,thd->phd", shares, value).flatten(1)


@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("share", [1.0, 0.4])
def test_a_layer_gives_what_the_changed_shares_give(copies: int, share: float) -> None:
    found, expected = attended(copies, share)
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found, attended(copies, 0.0)[1], atol=1e-2)


def test_other_keys_than_the_prompts_are_refused() -> None:
    q, k = torch.zeros(4, 4), torch.zeros(9, 4)
    with pytest.raises(GuardError, match="6 tokens, and attention is to 9"):
        Rivals(1.0, Window()).lost(q, k, k, 1, None, Words((1,), (True,), 6), (2, 2))
