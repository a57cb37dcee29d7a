"""Co-Erasing: its two losses before the first step, what gets gradients, and that it learns."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from lethe.erasers.algebra.hooks import gradients
from lethe.erasers.learn.loop import Job, train
from lethe.erasers.learn.moment import ANCHOR, CONCEPT, MAIN, STILL, STUDENT, Ask
from lethe.erasers.learn.refine import SHOWN
from lethe.erasers.task import Task
from toy_trainee import distance, gradient_names, job_of, run_of, tiny_task

QUICK = {"sampling_steps": 4, "pictures": 1, "vectors": 2, "inversion_steps": 1, "trajectories": 2}


def job(task: Task, settings: dict[str, Any] | None = None, **schedule: Any) -> Job:
    return job_of("co_erasing", task, {**QUICK, **(settings or {})}, **{"batch": 2, **schedule})


@pytest.mark.parametrize(("eta", "factor"), [(1.0, 4.0), (2.0, 9.0)])
@pytest.mark.parametrize(("text_share", "role"), [(0.5, CONCEPT), (0.0, SHOWN)])
def test_the_first_loss_is_the_distance_to_the_replacement(
    eta: float, factor: float, text_share: float, role: str
) -> None:
    task = tiny_task()
    run = run_of(job(task, {"eta": eta, "text_share": text_share, "refine": False}), task)
    with torch.no_grad(), run.active():
        moment = run.draw()
        run.make(moment)
        (loss,) = run.losses(moment)
        assert float(loss) == pytest.approx(factor * distance(run, moment, role, ANCHOR), rel=1e-4)
        assert distance(run, moment, CONCEPT, SHOWN) > 1e-8
        assert not moment[MAIN].x.requires_grad


def test_without_a_picture_the_second_stage_is_esd_on_what_the_first_made() -> None:
    task = tiny_task()
    run = run_of(job(task, {"vectors": 0, "text_share": 0.5, "latents": "fresh"}, steps=4), task)
    asks = [Ask(STILL, CONCEPT), Ask(STILL, ANCHOR), Ask(STUDENT, CONCEPT)]
    with torch.no_grad(), run.active():
        for tensor in run.trainables.tensors.values():
            tensor += 0.02
        run.step = 2
        moment = run.draw()
        run.make(moment)
        said = run.seen(asks, moment)
        (loss,) = run.losses(moment)
        assert float(loss) == pytest.approx(4 * float((said[asks[0]] - said[asks[1]]).square().mean()), rel=1e-4)
        for name in run.trainables.tensors:
            run.trainables.tensors[name] = run.trainables.tensors[name] + 0.02
        goal = 2 * said[asks[1]] - said[asks[0]]
        (loss,) = run.losses(moment)
        assert float(loss) == pytest.approx(float((run.seen(asks, moment)[asks[2]] - goal).square().mean()), rel=1e-4)


@pytest.mark.parametrize("text_share", [1.0, 0.0])
def test_everything_but_cross_attention_gets_gradients_and_the_picture_none(text_share: float) -> None:
    task = tiny_task()
    run = run_of(job(task, {"text_share": text_share}), task)
    with torch.no_grad(), run.active():
        moment = run.draw()
        run.make(moment)
        for tensor in run.trainables.tensors.values():
            tensor.requires_grad_()
        with gradients():
            assert not run.of_role(Ask(STUDENT, SHOWN), moment[MAIN]).states.requires_grad
            found = gradient_names(run, run.losses(moment))
    layers = (torch.nn.Linear, torch.nn.Conv2d)
    modules = {name for name, module in task.loaded().modules("").items() if isinstance(module, layers)}
    assert found == {n for n in modules if ".attn2." not in n and not n.startswith(("time_embedding", "conv_out"))}


def test_latents_are_blurred_in_the_second_stage_only() -> None:
    task = tiny_task()
    rough = {}
    for share in (1.0, 0.0):
        for blur in ("none", "3 x 3", "5 x 5"):
            run = run_of(job(task, {"text_share": share, "blur": blur, "vectors": 0}), task)
            with torch.no_grad(), run.active():
                x = run.draw()[MAIN].x
            rough[share, blur] = float((x[..., 1:] - x[..., :-1]).square().mean())
    assert rough[1.0, "none"] == rough[1.0, "3 x 3"] == rough[1.0, "5 x 5"]
    assert rough[0.0, "none"] > 2 * rough[0.0, "3 x 3"] > 2 * rough[0.0, "5 x 5"]


def test_training_brings_both_losses_down_and_leaves_the_model_alone() -> None:
    task = tiny_task()
    model: Any = task.loaded()
    before = {name: value.clone() for name, value in model.unet.state_dict().items()}
    for share in (1.0, 0.0):
        losses = train(task, job(task, {"text_share": share}, steps=24, rate=5e-3)).losses["erase"]
        assert sum(losses[-4:]) < 0.7 * sum(losses[:4])
    assert all(torch.equal(before[name], value) for name, value in model.unet.state_dict().items())


@pytest.mark.parametrize("stop", [1, 3])
def test_a_run_goes_on_from_its_state_as_if_it_had_not_stopped(stop: int) -> None:
    task = tiny_task()
    own = job(task, steps=4, rate=3e-3)
    whole = train(task, own).eraser
    half = train(task, replace(own, keep_state=True), lambda progress: progress.step == stop).eraser
    rest = train(task, replace(own, resumed=half)).eraser
    for name, edit in whole.adapters.items():
        shape = tuple(task.loaded().parameter(name).shape)
        assert torch.allclose(edit.delta(shape), rest.adapters[name].delta(shape), atol=1e-6)
