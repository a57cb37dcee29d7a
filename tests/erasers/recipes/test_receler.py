"""Receler: its losses before the first step, what it trains, its regulariser, and that it learns under attack."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from lethe.erasers.algebra.hooks import gradients
from lethe.erasers.learn.local import Local
from lethe.erasers.learn.loop import train
from lethe.erasers.learn.moment import ANCHOR, CONCEPT, NULL, Latents
from lethe.erasers.learn.region import OwnMaps
from lethe.erasers.learn.run import Run
from toy_trainee import distance, gradient_names, job_of, run_of, tiny_task

_FEW = {"sampling_steps": 4, "trajectories": 2}
_ONE = {"sampling_steps": 2, "trajectories": 1, "cfg": 1.0}


@pytest.mark.parametrize(("neutral", "role"), [("replacement", ANCHOR), ("empty", NULL)])
@pytest.mark.parametrize(("eta", "factor"), [(1.0, 4.0), (2.0, 9.0)])
def test_without_attack_the_first_loss_is_esds_and_the_regulariser_is_0(
    eta: float, factor: float, neutral: str, role: str
) -> None:
    task = tiny_task()
    run = run_of(job_of("receler", task, {**_FEW, "eta": eta, "attack_steps": 0, "neutral": neutral}), task)
    with torch.no_grad(), run.active():
        moment = run.draw()
        run.make(moment)
        erase, local = run.losses(moment)
        assert float(erase) == pytest.approx(factor * distance(run, moment, CONCEPT, role), rel=1e-4)
        assert float(local) == 0.0
        assert not moment["x"].x.requires_grad


def test_exactly_the_bottlenecks_get_gradients() -> None:
    task = tiny_task()
    run = run_of(job_of("receler", task, {**_FEW, "attack_steps": 1}, rank=4), task)
    with torch.no_grad(), run.active():
        moment = run.draw()
        run.make(moment)
        for tensor in run.trainables.tensors.values():
            tensor.requires_grad_()
        with gradients():
            found = gradient_names(run, run.losses(moment))
        assert found == set(run.trainables.tensors)
        assert all(parameter.grad is None for parameter in run.model.modules("")[""].parameters())
    assert {name.rpartition(".")[2] for name in found} == {"down", "down_bias", "up", "up_bias"}


def test_the_regulariser_counts_what_erasers_add_outside_the_region() -> None:
    task = tiny_task()
    run = run_of(job_of("receler", task, {**_FEW, "attack_steps": 0}, batch=1), task)

    def value(region: torch.Tensor) -> float:
        found = Local(lambda run, latents: region).loss(run, moment, {})
        assert isinstance(found, torch.Tensor)
        return float(found)

    with torch.no_grad(), run.active():
        moment = run.draw()
        # Two networks; the first adds 2 in the left half of 4 x 4 pixels, the second 1 everywhere in 2 x 2.
        first = torch.zeros(1, 4, 4, 3)
        first[:, :, :2] = 2.0
        run.trainables.outputs = {"a": first.flatten(1, 2), "b": torch.ones(1, 4, 3)}
        left = torch.zeros(1, 4, 4)
        left[:, :, :2] = 1.0
        assert value(left) == pytest.approx((0.0 + 1.0) / 2)
        assert value(1 - left) == pytest.approx((4.0 + 1.0) / 2)
        assert value(torch.zeros(1, 4, 4)) == pytest.approx((2.0 + 1.0) / 2)
        assert value(torch.ones(1, 4, 4)) == 0.0


def test_the_region_grows_as_the_threshold_falls() -> None:
    task = tiny_task()
    run = run_of(job_of("receler", task, _FEW), task)
    with torch.no_grad(), run.active():
        latents = run.draw()["x"]
        shares = [_share(run, latents, threshold) for threshold in (0.0, 0.3, 0.99)]
    assert 1 > shares[0] > shares[1] > shares[2] > 0


def _share(run: Run, latents: Latents, threshold: float) -> float:
    found = OwnMaps(threshold)(run, latents)
    assert set(found.unique().tolist()) == {0.0, 1.0}
    return float(found.mean())


@pytest.mark.parametrize("attack_steps", [0, 2])
def test_training_brings_the_loss_down_and_leaves_the_model_alone(attack_steps: int) -> None:
    task = tiny_task()
    job = job_of(
        "receler",
        task,
        {**_ONE, "attack_steps": attack_steps, "attack_rate": 0.01},
        steps=15,
        rate=1e-2,
        rank=8,
        batch=1,
    )
    before = {name: value.clone() for name, value in task.model.unet.state_dict().items()}  # type: ignore[union-attr]
    found = train(task, job)
    assert sum(found.losses["erase"][-5:]) < 0.8 * 5 * found.losses["erase"][0]
    assert max(found.losses["keep"]) > 0
    after = task.model.unet.state_dict()  # type: ignore[union-attr]
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert set(found.eraser.modules) and all(name.endswith(".attn2") for name in found.eraser.modules)


def test_a_run_that_goes_on_has_the_same_attack() -> None:
    task = tiny_task()
    job = job_of("receler", task, {**_FEW, "attack_steps": 1}, steps=2, rate=1e-2, rank=4, batch=1)
    whole = train(task, job)
    half = train(task, replace(job, schedule=replace(job.schedule, steps=1), keep_state=True))
    assert any(name.startswith("memory.soft prompt") for name in half.eraser.training)
    rest = train(task, replace(job, resumed=half.eraser))
    for name, own in whole.eraser.modules.items():
        assert torch.equal(own.up, rest.eraser.modules[name].up) and bool(own.up.any())
