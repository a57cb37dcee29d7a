"""DoCo: the value of its losses before the first step, what it trains, and that a resume is exact."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from lethe.erasers.learn.discriminator import REAL, called, fresh, judged
from lethe.erasers.learn.loop import Job, train
from lethe.erasers.learn.moment import ANCHOR, CONCEPT, STUDENT, TEACHER, Ask
from lethe.erasers.learn.space import denoised_from
from lethe.erasers.task import Task
from toy_trainee import job_of, run_of, tiny_task

SHORT = {"pictures": 2, "sampling_steps": 3, "head_start": 0.5}


def _job(settings: dict[str, Any] | None = None, prediction: str = "epsilon", **schedule: Any) -> tuple[Job, Task]:
    task = tiny_task(prediction=prediction)
    return job_of("doco", task, {**SHORT, **(settings or {})}, **{"batch": 2, **schedule}), task


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_first_losses_are_those_of_a_new_discriminator_and_of_denoising(prediction: str) -> None:
    job, task = _job({"head_start": 0.0}, prediction)
    run = run_of(job, task)
    with torch.no_grad(), run.active():
        moment = run.draw()
        latents, again = moment["x"], moment["again"]
        with torch.enable_grad():
            erase, keep = (loss.item() for loss in run.losses(moment))
        weights = fresh(run.model.latent_shape(), run.fork("discriminator"))
        said = run.teacher(latents, run.of_role(Ask(TEACHER, CONCEPT), latents))
        fake = denoised_from(run.model.prediction(), latents.x, latents.sigma, said)
        assert erase == pytest.approx(float(called(judged(weights, fake), REAL)), rel=1e-4)
        held = run.teacher(again, run.of_role(Ask(TEACHER, ANCHOR, "again"), again))
        clean = denoised_from(run.model.prediction(), again.x, again.sigma, held)
        assert again.clean is not None
        if prediction == "epsilon":
            error = ((clean - again.clean) / again.sigma.view(-1, 1, 1, 1)).square().mean()
            assert keep == pytest.approx(float(error), rel=1e-3)
        assert not latents.x.requires_grad


def test_the_terms_ask_for_the_student_in_the_concept_and_a_frozen_anchor() -> None:
    job, _ = _job()
    domain, held = job.plan.terms
    assert list(domain.asks()) == [Ask(STUDENT, CONCEPT), Ask(TEACHER, ANCHOR)]
    assert list(held.asks()) == [Ask(STUDENT, ANCHOR, "again")]


def test_the_student_stands_still_while_the_discriminator_learns_alone() -> None:
    job, task = _job(steps=4)
    seen: list[float] = []

    def watch(progress: Any) -> bool:
        seen.append(max(float(tensor.abs().max()) for tensor in progress.run.trainables.tensors.values()))
        return False

    train(task, job, watch)
    assert seen[:2] == [0, 0]
    assert seen[2] > 0


def test_a_run_that_goes_on_plays_on() -> None:
    job, task = _job(steps=6)
    whole = train(task, job).eraser

    def stop(progress: Any) -> bool:
        return progress.step == 4

    half = train(task, replace(job, keep_state=True), stop).eraser
    assert any(name.startswith("memory.discriminator.moment.") for name in half.training)
    again = train(task, replace(job, resumed=half)).eraser
    for name, edit in whole.adapters.items():
        for key, tensor in edit.tensors().items():
            assert torch.equal(tensor, again.adapters[name].tensors()[key]), name


def test_lam_and_variant_reach_the_gradients() -> None:
    erasers = []
    for settings in ({}, {"lam": 0.0}, {"variant": "as released"}):
        job, task = _job({**settings, "head_start": 0.0}, steps=4, rate=1e-2, optimizer="sgd", clip=0.0)
        found = train(task, job).eraser
        erasers.append(torch.cat([found.adapters[n].delta((16, 192)).flatten() for n in sorted(found.adapters)]))
    assert not torch.equal(erasers[0], erasers[1])
    assert not torch.equal(erasers[0], erasers[2])


def test_training_fools_the_discriminator_and_leaves_the_model_alone() -> None:
    # A discriminator that hardly learns, and no surgery: the student alone moves, on the same draws as one that stays.
    settings = {"head_start": 0.0, "disc_rate": 1e-6, "lam": 0.0}
    job, task = _job(settings, steps=14, rate=2e-2)
    before = {name: value.clone() for name, value in task.model.unet.state_dict().items()}  # type: ignore[union-attr]
    stays, found = train(task, replace(job, schedule=replace(job.schedule, rate=0.0))), train(task, job)
    assert sum(found.losses["erase"][-6:]) < sum(stays.losses["erase"][-6:])
    after = task.model.unet.state_dict()  # type: ignore[union-attr]
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(name.endswith((".to_k.weight", ".to_v.weight")) for name in found.eraser.adapters)
