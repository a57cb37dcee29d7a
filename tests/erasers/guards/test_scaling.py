"""ScalingConcept against its equations, and the way back from a picture."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from lethe.erasers.concepts import Concept, ConceptList
from lethe.erasers.errors import SettingError
from lethe.erasers.guard import Look
from lethe.erasers.guards.scaling import GUARD, Scaled
from lethe.erasers.learn.path import walk_back
from torch import Tensor
from toy_tower import ToyModel

SIGMA = 3.0


def noises(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(2, 2, 3, 3, generator=generator, dtype=torch.float64) for _ in range(count)]


def predicted(mix: Scaled, percent: float, p: Tensor, u: Tensor, c: Tensor, e: Tensor | None) -> Tensor:
    """The noise that guidance makes of what is mixed, at any scale."""
    x, level = torch.ones_like(p), torch.full((2,), SIGMA, dtype=torch.float64)
    look = Look(x, level, percent, x - SIGMA * p, x - SIGMA * u, {"ball": x - SIGMA * c}, {}, along=e)
    said, unsaid = mix(look)
    assert torch.equal(said, unsaid)
    return (x - said) / SIGMA


def test_the_concepts_part_is_scaled_and_the_pictures_way_is_left() -> None:
    p, u, c, e = noises(4)
    mix = Scaled("ball", -2.0, 3.0, 0.3)
    for percent in (0.0, 0.29, 0.3, 0.75):
        w = -2 * (1 - percent) ** 3
        wanted = u + w * (c - u) + (w * (e - c) if percent < 0.3 else 0)
        found = predicted(mix, percent, p, u, c, e if percent < 0.3 else None)
        assert torch.allclose(found, wanted, atol=1e-9)


def test_at_scale_one_the_pictures_own_way_is_followed() -> None:
    p, u, c, e = noises(4)
    assert torch.allclose(predicted(Scaled("ball", 1.0, 0.0, 1.0), 0.5, p, u, c, e), e, atol=1e-9)


@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_steps_down_the_way_end_at_the_picture_exactly(rounds: int) -> None:
    """Whatever the model sees, and however well each step was solved."""
    (clean,) = noises(1)
    sigmas = [0.1, 0.7, 2.0, 9.0]
    steps = list(walk_back(clean, sigmas, lambda x, s: (x * s).sin(), rounds))
    x = steps[-1][0]
    for sigma, below, (here, found) in zip(reversed(sigmas), [2.0, 0.7, 0.1, 0.0], reversed(steps), strict=True):
        assert torch.allclose(x, here, atol=1e-9)
        x = x + (below - sigma) * found
    assert torch.allclose(x, clean, atol=1e-9)


def test_rounds_solve_each_step_for_the_level_it_ends_at() -> None:
    """With D = x / 2 the solution is known: x_t = x_{t-1} / (1 - (s_t - s_{t-1}) / (2 s_t))."""
    (clean,) = noises(1)
    wanted, before = clean, 0.0
    for sigma in (1.0, 1.5, 2.0):
        wanted, before = wanted / (1 - (sigma - before) / (2 * sigma)), sigma
    far = [list(walk_back(clean, [1.0, 1.5, 2.0], lambda x, s: x / 2, n))[-1][0] - wanted for n in (1, 4, 40)]
    assert float(far[0].abs().max()) > 5 * float(far[1].abs().max()) and float(far[2].abs().max()) < 1e-9


def test_without_a_picture_it_says_so_and_with_one_it_starts_there() -> None:
    task = ToyModel().task(ConceptList().with_concept(Concept("ball", "box", ("orb",))))
    with pytest.raises(SettingError, match="picture"):
        GUARD.plan(task, GUARD.spec.settings({}))
    latents = torch.ones(1, 2, 2, 2)
    plan = GUARD.plan(replace(task, pictures=latents), GUARD.spec.settings({"rounds": 7}))
    assert plan.prompts == ("ball, orb",) and plan.path is not None
    assert torch.equal(plan.path.latents, latents) and (plan.path.prompt, plan.path.rounds) == ("ball, orb", 7)
