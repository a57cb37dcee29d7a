"""HFI: the value of its loss before the first step, what gets gradients, and that it learns."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from lethe.erasers.algebra.hooks import gradients
from lethe.erasers.learn.inversion import INVERTED, Word
from lethe.erasers.learn.law import middling
from lethe.erasers.learn.loop import Job, train
from lethe.erasers.learn.moment import AVERAGE, MAIN, NULL, STILL, STUDENT, TEACHER, Ask
from lethe.erasers.learn.rollout import Rollout
from lethe.erasers.learn.run import Run
from lethe.erasers.registry import recipe_named
from lethe.erasers.task import Task
from toy_trainee import distance, gradient_names, job_of, run_of, tiny_task

QUICK = {"sampling_steps": 4, "pictures": 1, "inversion_steps": 2, "latents": "kept", "trajectories": 2}


def job(task: Task, settings: dict[str, Any] | None = None, **schedule: Any) -> Job:
    return job_of("hfi", task, {**QUICK, **(settings or {})}, **{"batch": 2, **schedule})


@pytest.mark.parametrize("latents", ["kept", "fresh, average"])
def test_the_first_loss_is_the_distance_of_the_word_to_the_empty_prompt(latents: str) -> None:
    task = tiny_task()
    run = run_of(job(task, {"latents": latents}), task)
    with torch.no_grad(), run.active():
        moment = run.draw()
        run.make(moment)
        (loss,) = run.losses(moment)
        assert float(loss) == pytest.approx(distance(run, moment, INVERTED), rel=1e-4)
        assert float(loss) > 1e-6
        assert not moment[MAIN].x.requires_grad


def test_cross_attention_gets_gradients_and_only_through_the_words_prediction() -> None:
    task = tiny_task()
    run = run_of(job(task), task)
    with torch.no_grad(), run.active():
        moment = run.draw()
        run.make(moment)
        assert not run.of_role(Ask(STUDENT, INVERTED), moment[MAIN]).states.requires_grad
        for tensor in run.trainables.tensors.values():
            tensor += 0.01
            tensor.requires_grad_()
        with gradients():
            losses = run.losses(moment)
            found = gradient_names(run, losses)
        goal = run.seen([Ask(STILL, NULL)], moment)[Ask(STILL, NULL)]
        layers = (torch.nn.Linear, torch.nn.Conv2d)
        cross = {name for name, module in run.model.modules(r"\.attn2\.").items() if isinstance(module, layers)}
        assert found == cross != set()
        assert _slope(run, moment, None) == pytest.approx(_slope(run, moment, goal), rel=1e-4)


def _slope(run: Run, moment: Any, goal: torch.Tensor | None) -> float:
    """Size of the gradient of the recipe's own loss, or of the one towards a goal that stands still."""
    with gradients():
        if goal is None:
            (loss,) = run.losses(moment)
        else:
            ask = Ask(STUDENT, INVERTED)
            loss = (run.seen([ask], moment)[ask] - goal).square().mean()
        grads = torch.autograd.grad(loss, list(run.trainables.tensors.values()))
    return float(torch.cat([gradient.flatten() for gradient in grads]).norm())


def test_rollouts_are_the_moving_averages_with_times_from_the_middle_as_published() -> None:
    task = tiny_task()
    recipe = recipe_named("hfi")
    assert (recipe.schedule.average, recipe.schedule.steps, recipe.schedule.clip) == (0.999, 1500, 1.0)
    cases = {
        "fresh, average": (AVERAGE, 0),
        "fresh, student": (STUDENT, 0),
        "fresh": (TEACHER, 0),
        "kept": (TEACHER, 2),
    }
    for latents, expected in cases.items():
        plan = job(task, {"latents": latents}).plan
        (source,) = plan.sources
        assert isinstance(source, Rollout)
        assert (source.who, source.kept) == expected
        assert source.law is middling
        word = plan.makers[INVERTED]
        assert isinstance(word, Word) and source.says == word.features


def test_the_users_flagged_pictures_are_summed_up() -> None:
    pictures = torch.ones(3, 4, 8, 8)
    task = tiny_task(pictures=pictures)
    word = job(task).plan.makers[INVERTED]
    assert isinstance(word, Word)
    run = run_of(job(task), task)
    assert torch.equal(word.pictures.clean(run).latents, pictures)


def test_training_brings_the_loss_down_and_leaves_the_model_alone() -> None:
    task = tiny_task()
    model: Any = task.loaded()
    before = {name: value.clone() for name, value in model.unet.state_dict().items()}
    found = train(task, job(task, steps=24, rate=5e-3))
    assert sum(found.losses["erase"][-4:]) < 0.5 * sum(found.losses["erase"][:4])
    assert all(torch.equal(before[name], value) for name, value in model.unet.state_dict().items())
    assert set(found.eraser.adapters)


def test_a_run_goes_on_from_its_state_as_if_it_had_not_stopped() -> None:
    task = tiny_task()
    whole = train(task, job(task, steps=4, rate=3e-3)).eraser
    half = train(
        task, replace(job(task, steps=4, rate=3e-3), keep_state=True), lambda progress: progress.step == 2
    ).eraser
    rest = train(task, replace(job(task, steps=4, rate=3e-3), resumed=half)).eraser
    for name, edit in whole.adapters.items():
        shape = tuple(task.loaded().parameter(name).shape)
        assert torch.allclose(edit.delta(shape), rest.adapters[name].delta(shape), atol=1e-6)
