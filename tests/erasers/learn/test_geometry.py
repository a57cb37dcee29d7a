"""Location tokens: which cells a region touches, how places are weighed, and what is learned."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lethe.erasers.diffusers_host import DiffusersModel
from lethe.erasers.errors import SettingError
from lethe.erasers.learn.geometry import Grid, Marked, Places, learn_places, region_weights, sentence
from lethe.erasers.learn.inversion import Fit, first_vectors
from lethe.erasers.model import is_vector
from torch import Tensor
from toy_trainee import tiny_model

CORNER, STRIPE = torch.zeros(8, 8), torch.zeros(8, 8)
CORNER[:2, 6:] = 1
STRIPE[3:6] = 1


def test_a_region_touches_the_cells_it_reaches_into() -> None:
    assert Grid().touched(CORNER) == [3]
    assert Grid().touched(STRIPE) == [4, 5, 6, 7, 8, 9, 10, 11]
    assert Grid(2, 3).touched(CORNER) == [2]
    assert Grid().touched(torch.full((8, 8), 0.4)) == []


@pytest.mark.parametrize("alpha", [0.5, 1.0, 3.0])
def test_weights_add_up_to_the_places_of_a_picture(alpha: float) -> None:
    regions = torch.stack([CORNER, STRIPE, torch.zeros(8, 8), torch.ones(8, 8)])
    weights = region_weights(regions, alpha)
    assert torch.allclose(weights.flatten(1).sum(1), torch.full((4,), 64.0))
    assert float(weights[0, 4, 4] / weights[0, 0, 7]) == pytest.approx(alpha)
    assert torch.allclose(weights[2:], torch.ones(2, 8, 8))
    if alpha == 1:
        assert torch.allclose(weights, torch.ones(4, 8, 8))


def test_an_alpha_that_weighs_nothing_is_an_error() -> None:
    with pytest.raises(SettingError, match="alpha"):
        region_weights(CORNER[None], 0.0)


def test_a_sentence_is_caption_name_and_places_and_a_long_caption_is_cut() -> None:
    tower = tiny_model().tower()
    vectors = torch.arange(3.0)[:, None].expand(3, 192)

    def read(caption: str) -> list[Any]:
        content = sentence(tower, caption, "box", vectors)
        return ["v" if is_vector(token) else token for token in content]

    words = tower.content("a red"), tower.content("box")
    frame = list(tower.ids(""))
    assert read("a red") == [
        frame[0],
        *words[0],
        *words[1],
        "v",
        "v",
        "v",
        *frame[1 : -len(words[0]) - len(words[1]) - 3],
    ]
    long = read("a red " * 60)
    assert len(long) == len(frame)
    assert long[-5 - len(words[1]) + 1 :] == [*words[1], "v", "v", "v", tower.end]


def learn(model: DiffusersModel, seed: int = 0, alpha: float = 2.0, steps: int = 2, **given: Any) -> Places:
    marked = Marked(**{
        "latents": torch.stack([STRIPE * 0, CORNER, STRIPE])[:, None].expand(3, 4, 8, 8),
        "regions": torch.stack([STRIPE * 0, CORNER, STRIPE]),
        "captions": ("a", "a red", "a blue"),
        "name": "box",
        **given,
    })  # fmt: skip
    with model.ready():
        return learn_places(model, marked, Fit(steps, 0.02, 2), torch.Generator().manual_seed(seed), alpha=alpha)


def test_only_cells_that_a_picture_shows_make_the_word() -> None:
    model = tiny_model()
    found = learn(model)
    assert found.seen.nonzero().flatten().tolist() == [3, *range(4, 12)]
    assert found.vectors.shape == (16, 192)
    assert torch.equal(found.word, found.vectors[3:12])
    start = first_vectors(model.tower(), "", 16)
    assert torch.allclose(found.vectors[:3], start[:3] * (1 - 0.02 * 0.01) ** 2, atol=1e-7)
    assert bool((found.word - start[3:12]).abs().amax(1).gt(1e-3).all())
    negative = found.negative(model.tower())
    assert torch.equal(torch.stack([token for token in negative if isinstance(token, Tensor)]), found.word)
    assert torch.equal(learn(model).vectors, found.vectors)
    assert not torch.equal(learn(model, seed=1).vectors, found.vectors)


def test_weights_and_captions_count() -> None:
    model = tiny_model()
    plain = learn(model, alpha=1.0).vectors
    assert not torch.allclose(learn(model, alpha=5.0).vectors, plain, atol=1e-4)
    assert not torch.allclose(learn(model, alpha=1.0, captions=("a tree",) * 3).vectors, plain, atol=1e-4)
    dirty = learn(model, alpha=1.0, captions=("nobody reads this", "a red", "a blue")).vectors
    assert torch.equal(dirty, plain)


def test_pictures_that_do_not_fit_are_errors() -> None:
    model = tiny_model()
    with pytest.raises(SettingError, match="No region"):
        learn(model, regions=torch.zeros(3, 8, 8))
    with pytest.raises(SettingError, match="captions"):
        learn(model, captions=("one",))
    with pytest.raises(SettingError, match="8, 8"):
        learn(model, regions=torch.ones(3, 4, 4))
