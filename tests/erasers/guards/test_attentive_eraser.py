"""Attentive Eraser against its equations: attention that is redirected, and the guidance towards it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from lethe.erasers.concepts import Concept, ConceptList
from lethe.erasers.errors import SettingError
from lethe.erasers.guard import Look
from lethe.erasers.guards.attentive_eraser import GUARD, Removed
from lethe.erasers.redirect import Redirect
from torch import Tensor
from torch.nn import functional
from toy_tower import ToyModel

HEADS, SIZE = 2, (3, 4)
MASK = torch.zeros(6, 8, dtype=torch.bool)
MASK[1, 3] = MASK[4:, 6:] = True
INSIDE = torch.tensor([[0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]).bool()
"""The mask at a quarter of its places."""


def part(evenness: float = 0.3, until: float = 0.5, mask: Tensor = MASK) -> Redirect:
    return Redirect("", mask, evenness, until, ("output",))


def tensors(count: int, *shape: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)]


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The host's attention, of several heads."""
    q, k, v = (x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in (q, k, v))
    return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def by_the_equations(q: Tensor, k: Tensor, v: Tensor, inside: Tensor, s: float) -> Tensor:
    """m out_obj + (1 - m) out_bg of one row, head by head, with the logits written out."""
    found = []
    for one, other, value in zip(*(x.chunk(HEADS, -1) for x in (q, k, v)), strict=True):
        logits = one @ other.T / one.shape[-1] ** 0.5
        gone = torch.where(inside, -torch.inf, 0.0)
        own, around = ((scale * logits + gone).softmax(-1) @ value for scale in (s, 1.0))
        found.append(torch.where(inside[:, None], own, around))
    return torch.cat(found, -1)


@pytest.mark.parametrize(("percent", "s"), [(0.0, 0.3), (0.49, 0.3), (0.5, 1.0), (1.0, 1.0)])
def test_attention_is_redirected_as_the_equations_say(percent: float, s: float) -> None:
    q, k, v = tensors(3, 2, 12, 8)
    found = part().attend(plain, q, k, v, SIZE, percent)
    assert found is not None
    for row in range(2):
        assert torch.allclose(found[row], by_the_equations(q[row], k[row], v[row], INSIDE.flatten(), s), atol=1e-12)
    assert not torch.allclose(found, plain(q, k, v), atol=1e-2)


def test_what_stands_inside_has_no_say_in_anything() -> None:
    q, k, v = tensors(3, 1, 12, 8)
    inside = INSIDE.flatten()
    other = torch.where(inside[:, None], 7.0, 1.0)
    found, same = (part().attend(plain, q, k * by, v * by, SIZE, 0.0) for by in (torch.ones(12, 1), other))
    assert found is not None and same is not None and torch.equal(found, same)


def test_a_place_that_the_mask_touches_is_inside_at_every_size() -> None:
    assert torch.equal(part().inside(SIZE), INSIDE)
    assert torch.equal(part().inside((6, 8)), MASK) and int(part().inside((12, 16)).sum()) == 4 * int(MASK.sum())
    coarse = part().inside((2, 2))
    assert torch.equal(coarse, torch.tensor([[True, False], [False, True]]))


def test_features_that_lie_in_the_mask_whole_are_left_alone() -> None:
    q, k, v = tensors(3, 1, 1, 8)
    assert part().attend(plain, q, k, v, (1, 1), 0.0) is None


@pytest.mark.parametrize("scale", [1.0, 9.0])
def test_inside_it_is_guided_to_the_redirected_prediction_and_outside_not(scale: float) -> None:
    sigma = 3.0
    x, p, u, m = tensors(4, 2, 4, *SIZE)
    look = Look(x, torch.full((2,), sigma), 0.5, x - sigma * p, x - sigma * u, {"": x - sigma * m}, {})
    mix = Removed(scale, part())
    for mixed, own in zip(mix(look), (p, u), strict=True):
        wanted = torch.where(INSIDE, u + scale * (m - u), own)
        assert torch.allclose((x - mixed) / sigma, wanted, atol=1e-9)


def test_it_says_what_it_lacks_and_at_nothing_does_nothing() -> None:
    task = ToyModel().task(ConceptList().with_concept(Concept("ball")))
    plan = partial(GUARD.plan, settings=GUARD.spec.settings({}))
    for regions, problem in ((None, "mask"), (torch.zeros(1, 4, 4), "empty"), (torch.ones(1, 4, 4), "whole")):
        with pytest.raises(SettingError, match=problem):
            plan(replace(task, regions=regions))
    told = replace(task, regions=torch.tensor([[[0.0, 0.1], [0.2, 1.0]]]))
    made = plan(told).redirect
    assert made is not None and made.mask.tolist() == [[False, False], [True, True]] and made.blocks == ("output",)
    assert GUARD.plan(told, GUARD.spec.settings({"scale": 0})).mix is None
