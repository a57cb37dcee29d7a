"""SalUn: the value of its losses before the first step, its mask, and that it learns inside it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lethe.erasers.algebra.hooks import gradients
from lethe.erasers.learn.loop import Job, train
from lethe.erasers.learn.moment import ANCHOR, CONCEPT, STUDENT, Ask, Latents
from lethe.erasers.learn.pictures import Pictures
from lethe.erasers.learn.run import Run
from lethe.erasers.recipes.salun import GuidedError
from lethe.erasers.task import Task
from toy_trainee import distance, gradient_names, job_of, run_of, tiny_task

SHORT = {"pictures": 3, "sampling_steps": 4, "share": 0.37}


def _job(settings: dict[str, Any] | None = None, **schedule: Any) -> tuple[Job, Task]:
    task = tiny_task()
    return job_of("salun", task, {**SHORT, **(settings or {})}, **schedule), task


def _run(settings: dict[str, Any] | None = None) -> Run:
    return run_of(*_job(settings))


def test_the_first_losses_are_the_distance_to_the_anchor_and_the_ordinary_one() -> None:
    run = _run({"beta": 0.5})
    with torch.no_grad(), run.active():
        moment = run.draw()
        erase, keep = run.losses(moment)
        assert float(erase) == pytest.approx(distance(run, moment, CONCEPT, ANCHOR), rel=1e-4)
        kept: Latents = moment["kept"]
        assert {scene[CONCEPT] for scene in kept.scenes} <= {"tree", "a green heart"}
        assert kept.noise is not None
        said = run.teacher(kept, run.of_role(Ask(STUDENT, CONCEPT, "kept"), kept))
        assert float(keep) == pytest.approx(0.5 * float((said - kept.noise).square().mean()), rel=1e-3)
        assert not moment["x"].x.requires_grad


def test_the_users_pictures_are_taken() -> None:
    given = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    task = tiny_task(pictures=given)
    run = run_of(job_of("salun", task, SHORT), task)
    with torch.no_grad(), run.active():
        moment = run.draw()
    clean, kept = moment["x"].clean, moment["kept"].clean
    assert clean is not None and kept is not None
    assert all(any(torch.equal(row, picture) for picture in given) for row in clean)
    assert not any(torch.equal(row, picture) for row in kept for picture in given)


@pytest.mark.parametrize("sites", ["cross", "all"])
def test_exactly_the_chosen_layers_get_gradients(sites: str) -> None:
    run = _run({"sites": sites})
    layers = (torch.nn.Linear, torch.nn.Conv2d)
    pattern = r"\.attn2\." if sites == "cross" else ""
    expected = {name for name, module in run.model.modules(pattern).items() if isinstance(module, layers)}
    with torch.no_grad(), run.active():
        moment = run.draw()
        for tensor in run.trainables.tensors.values():
            tensor.requires_grad_()
        with gradients():
            found = gradient_names(run, run.losses(moment))
    assert found == expected != set()


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_saliency_is_measured_by_the_error_of_guided_predictions(prediction: str) -> None:
    task = tiny_task(prediction=prediction)
    run = run_of(job_of("salun", task, SHORT, batch=2), task)
    source = run.plan.sources[0]
    assert isinstance(source, Pictures)
    with torch.no_grad(), run.active():
        clean = source.clean(run)
        for guidance in (0.0, 7.5):
            run.generator.manual_seed(4)
            losses = list(GuidedError(source, guidance)(run))
            assert len(losses) == 2
            found = float(losses[0]())
            generator = torch.Generator().manual_seed(4)
            noise = torch.randn(2, 4, 8, 8, generator=generator)
            sigma = run.model.level(torch.rand(2, generator=generator))
            s = sigma.view(-1, 1, 1, 1)
            latents = Latents(clean.latents[:2] + s * noise, sigma, clean.scenes[:2])
            said, unsaid = (
                run.teacher(latents, run.features(p)) for p in ([sc[CONCEPT] for sc in latents.scenes], [""] * 2)
            )
            alpha = (1 + s**2).rsqrt()
            truth = noise if prediction == "epsilon" else alpha * noise - s * alpha * clean.latents[:2]
            expected = ((1 + guidance) * said - guidance * unsaid - truth).square().mean()
            assert found == pytest.approx(-float(expected), rel=1e-3)


def test_the_mask_has_its_share_of_all_weights_together() -> None:
    run = _run()
    assert run.plan.mask is not None
    with torch.no_grad(), run.active():
        mask = run.plan.mask(run)
    total = sum(tensor.numel() for tensor in run.trainables.tensors.values())
    assert {name: own.shape for name, own in mask.items()} == {n: t.shape for n, t in run.trainables.tensors.items()}
    assert sum(int(own.sum()) for own in mask.values()) == round(0.37 * total)
    assert len({round(float(own.float().mean()), 3) for own in mask.values()}) > 1


def test_training_changes_salient_weights_alone_and_brings_the_loss_down() -> None:
    job, task = _job({"beta": 0.0}, steps=25, rate=2e-3)
    run = run_of(job, task)
    assert job.plan.mask is not None
    with torch.no_grad(), run.active():
        mask = job.plan.mask(run)
    before = {name: value.clone() for name, value in task.model.unet.state_dict().items()}  # type: ignore[union-attr]
    found = train(task, job)
    assert sum(found.losses["erase"][-5:]) < 0.5 * sum(found.losses["erase"][:5])
    after = task.model.unet.state_dict()  # type: ignore[union-attr]
    assert all(torch.equal(before[name], after[name]) for name in before)
    moved = 0
    for name, own in mask.items():
        delta = found.eraser.adapters[f"{name}.weight"].delta(tuple(own.shape))
        # Where a difference is kept as factors, what is zero in it comes back as rounding.
        assert float(delta[~own].abs().amax() if bool((~own).any()) else 0) <= 1e-6 * float(delta.abs().max() + 1e-30)
        moved += int((delta[own] != 0).sum())
    assert moved > 0.9 * sum(int(own.sum()) for own in mask.values())


def test_a_run_that_goes_on_has_the_same_mask() -> None:
    job, task = _job({}, steps=4)
    whole = train(task, job).eraser
    half = train(task, Job(**{**vars(job), "schedule": _with(job, 2), "keep_state": True})).eraser
    again = train(task, Job(**{**vars(job), "resumed": half})).eraser
    for name, edit in whole.adapters.items():
        for key, tensor in edit.tensors().items():
            assert torch.equal(tensor, again.adapters[name].tensors()[key])


def _with(job: Job, steps: int) -> Any:
    return type(job.schedule)(**{**vars(job.schedule), "steps": steps})
