"""Rollouts under learned vectors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lethe.erasers.learn.full import Full
from lethe.erasers.learn.inversion import Fit, Word
from lethe.erasers.learn.law import Law, middling
from lethe.erasers.learn.moment import AVERAGE, MAIN, STUDENT, TEACHER, Latents
from lethe.erasers.learn.pictures import Pictures
from lethe.erasers.learn.plan import Plan, Schedule
from lethe.erasers.learn.rollout import Rollout, levels
from lethe.erasers.learn.run import Run
from lethe.erasers.learn.scenes import concept_scenes
from toy_trainee import tiny_task


def at(place: float) -> Law:
    """Every time the same."""
    return lambda count, generator: torch.full((count,), place)


def drawn(vectors: int = 1, moved: str = "", rows: int = 3, **given: Any) -> tuple[Latents, Run]:
    """What a rollout of five steps draws; `moved` shifts the tensors in training, or their averages."""
    task = tiny_task()
    scenes = concept_scenes(task, "none")
    run = Run(task, Plan(Full("cross"), (), ()), Schedule(1, 1e-3, average=0.9), seed=4)
    shifted = {"": {}, STUDENT: run.trainables.tensors, AVERAGE: run.averages}[moved]
    for tensor in shifted.values():
        tensor += 0.2
    word = Word(Pictures(scenes, count=2, steps=3), ("ball",), vectors, Fit(1, 0.3, 1))
    with torch.no_grad(), run.active():
        return Rollout(scenes, steps=5, says=word.features, **given).draw(run, rows)[MAIN], run


def test_times_are_from_the_middle() -> None:
    times = middling(20000, torch.Generator().manual_seed(0))
    assert float(times.mean()) == pytest.approx(0.5, abs=0.005)
    assert float(times.var()) == pytest.approx(1 / 28, rel=0.03)
    assert 0 < float(times.min()) < float(times.max()) < 1


@pytest.mark.parametrize(("place", "step"), [(0.0, 0), (0.5, 2), (0.99, 4)])
@pytest.mark.parametrize("kept", [0, 4])
def test_latents_are_at_the_level_of_their_time(place: float, step: int, kept: int) -> None:
    latents, run = drawn(kept=kept, law=at(place))
    assert torch.equal(latents.sigma, levels(run.model, 5)[step].expand(3))
    assert len(latents.scenes) == 3
    assert not latents.x.requires_grad


def test_the_word_is_what_they_are_rolled_out_under() -> None:
    latents, run = drawn(vectors=0, kept=0, law=at(0.99))
    with torch.no_grad(), run.active():
        run.generator.manual_seed(4)
        plain = Rollout(concept_scenes(run.task, "none"), 3.0, 5, kept=0, zones={MAIN: (0.8, 1.0)})
        noise = latents.noise
        assert noise is not None
        path = plain._roll(run, noise, latents.scenes, 4)  # pyright: ignore[reportPrivateUsage]
    assert torch.allclose(latents.x, path.x[:, 4], atol=1e-5)
    other, _ = drawn(vectors=1, kept=0, law=at(0.99))
    assert not torch.allclose(latents.x, other.x, atol=1e-2)


@pytest.mark.parametrize(("who", "follows"), [(TEACHER, ()), (STUDENT, (STUDENT,)), (AVERAGE, (AVERAGE,))])
def test_the_one_who_rolls_out_is_the_one_that_was_asked(who: str, follows: tuple[str, ...]) -> None:
    before = drawn(who=who, kept=0, law=at(0.99))[0].x
    for moved in (STUDENT, AVERAGE):
        after = drawn(moved=moved, who=who, kept=0, law=at(0.99))[0].x
        assert torch.allclose(before, after, atol=1e-5) == (moved not in follows)


def test_kept_rollouts_are_made_once() -> None:
    task = tiny_task()
    scenes = concept_scenes(task, "none")
    run = Run(task, Plan(Full("cross"), (), ()), Schedule(1, 1e-3), seed=4)
    word = Word(Pictures(scenes, count=2, steps=3), ("ball",), fit=Fit(1, batch=1))
    source = Rollout(scenes, steps=5, kept=9, says=word.features)
    with torch.no_grad(), run.active():
        source.draw(run, 2)
        spent = run.predictions
        assert spent == 2 * 3 * 2 + 1 + 9 * 5 * 2
        assert len(source.draw(run, 40)[MAIN].x.unique(dim=0)) > 9
        assert run.predictions == spent
