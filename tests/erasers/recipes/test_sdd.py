"""SDD: its loss and where its gradient flows, who rolls out, and that the average is the result."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from lethe.erasers.algebra.hooks import gradients
from lethe.erasers.learn.loop import train
from lethe.erasers.learn.moment import ANCHOR, CONCEPT, NULL
from toy_trainee import distance, job_of, run_of, tiny_task


def test_the_first_loss_is_the_distance_to_the_empty_prompt() -> None:
    task = tiny_task()
    run = run_of(job_of("sdd", task, {"sampling_steps": 4}), task)
    with torch.no_grad(), run.active():
        moment = run.draw()
        assert float(run.losses(moment)[0]) == pytest.approx(distance(run, moment, CONCEPT), rel=1e-4)
        empty = replace(moment["x"], scenes=({NULL: "", CONCEPT: "", ANCHOR: ""},) * len(moment["x"].x))
        assert float(run.losses({"x": empty})[0]) == pytest.approx(0.0, abs=1e-12)
        assert not moment["x"].x.requires_grad


def test_the_target_is_the_students_own_and_gives_no_gradient() -> None:
    task = tiny_task()
    run = run_of(job_of("sdd", task, {"sampling_steps": 4}), task)
    leaves = list(run.trainables.tensors.values())
    with torch.no_grad(), run.active():
        for leaf in leaves:
            leaf.normal_(std=0.05, generator=run.generator).requires_grad_()
        moment = run.draw()
        latents = moment["x"]
        concept, null = (run.features([scene[role] for scene in latents.scenes]) for role in (CONCEPT, NULL))
        still = run.student(latents, null)
        assert not torch.allclose(still, run.teacher(latents, null), atol=1e-3)
        with gradients():
            expected = torch.autograd.grad((run.student(latents, concept) - still).square().mean(), leaves)
            found = torch.autograd.grad(run.losses(moment)[0], leaves)
    assert all(torch.allclose(one, other, rtol=1e-3, atol=1e-6) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize(("latents", "by_average"), [("fresh, average", True), ("fresh, student", False)])
def test_the_moving_average_rolls_out(latents: str, by_average: bool) -> None:
    task = tiny_task()
    drawn = []
    for moved in ("tensors", "averages"):
        run = run_of(job_of("sdd", task, {"latents": latents, "sampling_steps": 8}, batch=2), task)
        for tensor in (run.trainables.tensors if moved == "tensors" else run.averages).values():
            tensor.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
        with torch.no_grad(), run.active():
            drawn.append(run.draw()["x"].x)
    untouched = run_of(job_of("sdd", task, {"latents": latents, "sampling_steps": 8}, batch=2), task)
    with torch.no_grad(), untouched.active():
        x = untouched.draw()["x"].x
    assert torch.allclose(drawn[0], x) is by_average
    assert torch.allclose(drawn[1], x) is not by_average


def test_training_brings_the_loss_down_and_the_average_is_the_result() -> None:
    task = tiny_task()
    settings = {"sampling_steps": 5, "latents": "kept", "trajectories": 2}
    job = replace(job_of("sdd", task, settings, steps=50, rate=3e-3, batch=2, average=0.9), keep_state=True)
    before = {name: value.clone() for name, value in task.model.unet.state_dict().items()}  # type: ignore[union-attr]
    found = train(task, job)
    assert sum(found.losses["erase"][-5:]) < 0.5 * sum(found.losses["erase"][:5])
    after = task.model.unet.state_dict()  # type: ignore[union-attr]
    assert all(torch.equal(before[name], after[name]) for name in before)
    state = found.eraser.training
    for name, edit in found.eraser.adapters.items():
        layer = name.removesuffix(".weight")
        delta = edit.delta(tuple(state[f"tensor.{layer}"].shape))
        assert torch.allclose(delta, state[f"average.{layer}"], atol=1e-6)
        assert not torch.allclose(delta, state[f"tensor.{layer}"], atol=1e-6)


def test_the_average_keeps_its_share_of_a_step() -> None:
    task = tiny_task()
    settings = {"sampling_steps": 4, "latents": "kept", "trajectories": 2}
    job = replace(job_of("sdd", task, settings, steps=1, rate=1e-3, average=0.75), keep_state=True)
    state = train(task, job).eraser.training
    for name in (key.removeprefix("average.") for key in state if key.startswith("average.")):
        assert torch.allclose(state[f"average.{name}"], 0.25 * state[f"tensor.{name}"], atol=1e-9)
