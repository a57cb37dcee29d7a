"""Heat maps of words: where tokens stand, what they get, and how it is shown."""

from __future__ import annotations

import pytest
import torch
from lethe.erasers.errors import SettingError
from lethe.erasers.measure.heat import fitted_map, heat_pictures, word_places, word_shares

START, END = 98, 99
CHUNKS = [[START, 1, 2, 3, 1, END], [START, torch.zeros(4), 2, 3, 2, END]]


def test_a_word_is_found_in_every_chunk_as_a_whole() -> None:
    assert word_places(CHUNKS, "one", [1]) == [1, 4]
    assert word_places(CHUNKS, "two three", [2, 3]) == [2, 3, 8, 9]
    assert word_places(CHUNKS, "two", [2]) == [2, 8, 10]


@pytest.mark.parametrize("ids", [[4], [3, 2, 1], []])
def test_a_word_that_is_not_there_is_refused(ids: list[int]) -> None:
    with pytest.raises(SettingError, match="'four' is not in the prompt"):
        word_places(CHUNKS, "four", ids)


@pytest.mark.parametrize("masked", [None, "bias", "bool"])
def test_shares_are_means_over_heads_and_tokens_of_what_attention_gives(masked: str | None) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(5, 6, generator=generator), torch.randn(7, 6, generator=generator)
    bias = torch.randn(1, 5, 7, generator=generator)
    mask = {None: None, "bias": bias, "bool": bias > -0.5}[masked]
    found = word_shares(q, k, 2, mask, [[0, 3], [6]])
    for place in range(5):
        got = torch.zeros(7)
        for head in (slice(0, 3), slice(3, 6)):
            products = k[:, head] @ q[place, head] / 3**0.5
            if masked == "bias":
                products = products + bias[0, place]
            weights = products.exp() * (mask[0, place] if mask is not None and masked == "bool" else 1)
            got += weights / weights.sum() / 2
        assert torch.allclose(found[:, place], torch.stack([(got[0] + got[3]) / 2, got[6]]), atol=1e-5)


def test_a_map_goes_from_black_to_white_and_a_flat_one_stays_black() -> None:
    maps = torch.stack([torch.linspace(0.1, 0.3, 6).view(2, 3), torch.full((2, 3), 0.2)])
    shown = heat_pictures(maps, None)
    assert torch.allclose(shown[0, 0, 0], torch.zeros(3)) and torch.allclose(shown[0, 1, 2], torch.ones(3))
    assert torch.allclose(shown[1], torch.zeros(2, 3, 3))
    brightness = shown[0].mean(-1).flatten()
    assert bool((brightness.diff() > 0).all())
    white = heat_pictures(maps, torch.ones(2, 2, 3, 3))
    assert float(white.max()) <= 1 and bool((white[1] > 0.3).all())


def test_maps_at_another_size_run_from_place_to_place() -> None:
    maps = torch.tensor([[0.0, 1.0], [0.0, 1.0]]).expand(2, 3, 2, 2)
    assert torch.allclose(fitted_map(maps, 3, 4), torch.tensor([0, 0.25, 0.75, 1.0]).expand(2, 3, 3, 4))
