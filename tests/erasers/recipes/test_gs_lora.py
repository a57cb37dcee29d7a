"""GS-LoRA: the value of its losses before the first step, what it trains, what it leaves out, and that it learns."""

from __future__ import annotations

import pytest
import torch
from lethe.erasers.algebra.hooks import gradients
from lethe.erasers.errors import NumericsError
from lethe.erasers.learn.loop import train
from lethe.erasers.learn.moment import CONCEPT
from lethe.erasers.learn.run import Run
from toy_trainee import gradient_names, job_of, run_of, tiny_task

QUICK = {"pictures": 2}


def _error(run: Run, latents) -> float:  # type: ignore[no-untyped-def]
    said = run.teacher(latents, run.features([scene[CONCEPT] for scene in latents.scenes]))
    return float((said - latents.noise).square().mean())


def test_the_first_losses() -> None:
    task = tiny_task()
    run = run_of(job_of("gs_lora", task, {**QUICK, "bound": 3.0, "beta": 0.15, "alpha": 0.01}), task)
    with torch.no_grad(), run.active():
        moment = run.draw()
        erase, keep = run.losses(moment)
        (penalty,) = (penalty(run.trainables) for penalty in run.plan.penalties)
        assert float(erase) == pytest.approx(0.15 * (3.0 - _error(run, moment["x"])), rel=1e-4)
        assert float(keep) == pytest.approx(_error(run, moment["kept"]), rel=1e-4)
    assert {scene[CONCEPT] for scene in moment["x"].scenes} == {"ball"}
    assert {scene[CONCEPT] for scene in moment["kept"].scenes} <= {"tree", "a green heart"}
    # A block is all four matrices of its two layers.
    groups = run.trainables.groups
    assert groups and all(len(names) == 4 for names in groups.values())
    norms = [sum(float(run.trainables.tensors[n].square().sum()) for n in names) ** 0.5 for names in groups.values()]
    assert float(penalty) == pytest.approx(0.01 * sum(norms), rel=1e-5)


def test_only_feed_forward_layers_get_gradients_and_none_past_the_bound() -> None:
    task = tiny_task()
    run = run_of(job_of("gs_lora", task, {**QUICK, "bound": 0.0}), task)
    with torch.no_grad(), run.active():
        moment = run.draw()
        for tensor in run.trainables.tensors.values():
            tensor.requires_grad_()
        with gradients():
            erase, keep = run.losses(moment)
            slopes = torch.autograd.grad(erase, list(run.trainables.tensors.values()), retain_graph=True)
            assert gradient_names(run, [keep]) == set(run.trainables.tensors)
    assert not any(slope.any() for slope in slopes)
    assert all(".ff.net." in name for name in run.trainables.tensors)


def test_training_forgets_and_leaves_out_what_hardly_changed() -> None:
    task = tiny_task()
    before = {name: value.clone() for name, value in task.model.unet.state_dict().items()}  # type: ignore[union-attr]
    settings = {**QUICK, "bound": 3.0, "beta": 1.0}
    found = train(task, job_of("gs_lora", task, settings, steps=20, rate=3e-2))
    assert sum(found.losses["erase"][-5:]) < 0.87 * sum(found.losses["erase"][:5])
    after = task.model.unet.state_dict()  # type: ignore[union-attr]
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert found.eraser.adapters and all(".ff.net." in name for name in found.eraser.adapters)
    with pytest.raises(NumericsError, match="changes nothing"):
        train(task, job_of("gs_lora", task, {**settings, "smallest": 10.0}, steps=1))


def test_the_penalty_shrinks_blocks_that_nothing_else_needs() -> None:
    task = tiny_task()
    norms = []
    for alpha in (0.0, 10.0):
        settings = {**QUICK, "beta": 0.0, "alpha": alpha, "smallest": 0.0}
        adapters = train(task, job_of("gs_lora", task, settings, steps=8, rate=2e-2)).eraser.adapters
        norms.append(sum(float(e.down.norm()) for e in adapters.values() if e.down is not None))
    assert norms[1] < 0.5 * norms[0]
