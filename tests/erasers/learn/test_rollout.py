"""Rollouts: latents are at the level they say, of the model that was asked, and without gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lethe.erasers.learn.moment import ANCHOR, CONCEPT, NAME, NULL, TEACHER, Ask, Features, Latents
from lethe.erasers.learn.pictures import Pictures
from lethe.erasers.learn.rollout import Rollout, levels, roll
from lethe.erasers.learn.scenes import scene
from lethe.erasers.learn.space import EPS, FLOW, V, mixed, own_space
from torch import Tensor
from toy_trainee import job_of, run_of, tiny_task


class Gaussian:
    """Knows the answer for pictures whose every value is drawn from a unit Gaussian."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def prediction(self) -> str:
        return self.kind

    def level(self, percent: Tensor) -> Tensor:
        return (1 - percent).clamp(min=1e-3) if self.kind == FLOW else 30 * (1 - percent) ** 3 + 0.01

    def look(self, latents: Latents, _features: Features) -> Tensor:
        s = latents.sigma.view(-1, 1, 1, 1)
        spread = (1 - s) ** 2 + s**2 if self.kind == FLOW else 1 + s**2
        clean = (1 - s) if self.kind == FLOW else 1.0
        return own_space(self.kind, latents.x, latents.sigma, clean * latents.x / spread)


@pytest.mark.parametrize("kind", [EPS, V, FLOW])
def test_latents_are_at_the_level_that_is_claimed(kind: str) -> None:
    model: Any = Gaussian(kind)
    sigmas = levels(model, 100)
    noise = torch.randn(2, 1, 100, 100, generator=torch.Generator().manual_seed(0))
    seen: list[Tensor] = []
    nothing = Features(torch.zeros(2, 1, 1))
    roll(model, model.look, noise * sigmas[0], sigmas, nothing, nothing, 1.0, lambda x, own: seen.append(x))
    for place in (10, 50, 90):
        s = float(sigmas[place])
        expected = (1 - s) ** 2 + s**2 if kind == FLOW else 1 + s**2
        assert float(seen[place].var()) == pytest.approx(expected, rel=0.06), place


RECIPES = [("esd", (CONCEPT, NULL)), ("ace", (CONCEPT, NULL, NAME, ANCHOR))]
"""What a recipe knows of all latents that it keeps."""


@pytest.mark.parametrize(("recipe", "roles"), RECIPES)
def test_what_is_kept_is_what_the_teacher_sees_there(recipe: str, roles: tuple[str, ...]) -> None:
    task = tiny_task()
    run = run_of(job_of(recipe, task, {"sampling_steps": 5, "trajectories": 3}), task)
    with torch.no_grad(), run.active():
        moment = run.draw()
        latents = moment["x"]
        assert set(latents.known) == set(roles)
        for role in roles:
            again = run.teacher(latents, run.of_role(Ask(TEACHER, role), latents))
            assert torch.allclose(latents.known[role], again, atol=1e-5)
        assert latents.x.grad_fn is None


@pytest.mark.parametrize(("recipe", "roles"), RECIPES)
def test_kept_trajectories_cost_nothing_more(recipe: str, roles: tuple[str, ...]) -> None:
    task = tiny_task()
    run = run_of(job_of(recipe, task, {"sampling_steps": 5, "trajectories": 3}), task)
    with torch.no_grad(), run.active():
        run.draw()
        first = run.predictions
        moment = run.draw()
        assert run.predictions == first == len(roles) * 3 * 5
        run.seen([Ask(TEACHER, role) for role in roles], moment)
    assert run.predictions == first


def test_a_fresh_rollout_of_the_student_follows_what_is_trained() -> None:
    task = tiny_task()
    run = run_of(job_of("esd", task, {"sampling_steps": 5, "latents": "fresh, student"}), task)
    state = run.generator.get_state()
    with torch.no_grad(), run.active():
        before = run.draw()["x"]
        for tensor in run.trainables.tensors.values():
            tensor += 0.05 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1))
        run.generator.set_state(state)
        after = run.draw()["x"]
    assert torch.equal(before.sigma, after.sigma)
    assert not before.known
    later = before.sigma < before.sigma.max()
    assert bool(later.any())
    assert not torch.allclose(before.x[later], after.x[later])


def test_zones_take_their_part_of_one_trajectory() -> None:
    task = tiny_task()
    zones = {"early": (0.0, 0.3), "late": (0.3, 1.0)}
    block = Rollout((scene("ball"),), steps=10, kept=4, zones=zones)
    run = run_of(job_of("esd", task), task)
    edge = float(levels(run.model, 10)[3])
    with torch.no_grad(), run.active():
        for _ in range(5):
            found = block.draw(run, 6)
            assert torch.equal(found["early"].noise, found["late"].noise)
            assert bool((found["early"].sigma > edge).all())
            assert bool((found["late"].sigma <= edge).all())


@pytest.mark.parametrize("given", [True, False])
def test_pictures_are_the_users_or_the_models(given: bool) -> None:
    pictures = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    regions = torch.rand(2, 8, 8)
    task = tiny_task(pictures=pictures, regions=regions)
    block = Pictures((scene("ball"),), count=3, steps=3, given=given)
    run = run_of(job_of("esd", task), task)
    with torch.no_grad(), run.active():
        drawn = block.draw(run, 5)["x"]
    assert drawn.clean is not None
    assert drawn.noise is not None
    known = [any(torch.equal(row, picture) for picture in pictures) for row in drawn.clean]
    assert all(known) if given else not any(known)
    assert (drawn.regions is not None) == given
    assert torch.equal(drawn.x, mixed(EPS, drawn.clean, drawn.noise, drawn.sigma))
    assert len(set(drawn.sigma.tolist())) == 5
