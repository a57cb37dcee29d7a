"""ANT: the value of its losses before the first step, its zones and masks, and that it learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lethe.erasers.algebra.hooks import gradients
from lethe.erasers.concepts import Concept, ConceptList
from lethe.erasers.errors import SettingError
from lethe.erasers.learn.loop import train
from lethe.erasers.learn.moment import CONCEPT
from lethe.erasers.learn.rollout import levels
from lethe.erasers.learn.run import Run
from lethe.erasers.learn.saliency import Saliency
from toy_trainee import BALL, distance, job_of, run_of, tiny_task

SHORT = {"sampling_steps": 10, "keep_steps": 3, "trajectories": 2, "mask_draws": 1}


def _run(settings: dict[str, Any] | None = None, concepts: ConceptList = BALL, **schedule: Any) -> Run:
    task = tiny_task(concepts)
    return run_of(job_of("ant", task, {**SHORT, **(settings or {})}, **schedule), task)


@pytest.mark.parametrize(("form", "scale"), [("masked", 1.0), ("adapters", 5.0)])
def test_the_first_losses_are_a_distance_late_and_nothing_else(form: str, scale: float) -> None:
    run = _run({"form": form, "cfg": 5.0})
    with torch.no_grad(), run.active():
        moment = run.draw()
        late, *rest = run.losses(moment)
        assert float(late) == pytest.approx(4 * scale**2 * distance(run, moment, CONCEPT, at="late"), rel=1e-4)
        assert all(float(loss) == pytest.approx(0, abs=1e-10) for loss in rest)
        assert not any(latents.x.requires_grad for latents in moment.values())


def test_the_kept_part_is_pushed_towards_the_concept() -> None:
    run = _run({"eta": 3.0, "keep_weight": 0.7})
    with torch.no_grad(), run.active():
        moment = run.draw()
        late, _, early, _ = run.losses(moment)
        assert float(late) == pytest.approx(16 * distance(run, moment, CONCEPT, at="late"), rel=1e-4)
        assert float(early) == pytest.approx(0.7 * 4 * distance(run, moment, CONCEPT, at="early"), rel=1e-4)


@pytest.mark.parametrize("latents", ["kept", "fresh, student"])
def test_the_noisy_steps_are_kept_and_both_parts_are_of_one_trajectory(latents: str) -> None:
    run = _run({"latents": latents}, batch=40)
    with torch.no_grad(), run.active():
        moment = run.draw()
        sigmas = levels(run.model, 10)[:-1]
        early, late = moment["early"], moment["late"]
        assert set(early.sigma.tolist()) == set(sigmas[:3].tolist())
        assert set(late.sigma.tolist()) == set(sigmas[3:].tolist())
        assert early.noise is not None and late.noise is not None
        assert torch.equal(early.noise, late.noise)
        # Where the last of the one part and the first of the other meet, they are one step apart.
        assert float(early.sigma.min()) > float(late.sigma.max())


@pytest.mark.parametrize(
    ("form", "first", "cfg", "weights"),
    [("masked", 7, 3.0, (1, 0.5, 1, 0.5)), ("adapters", 4, 7.5, (1, 2.5, 0.5, 1.25))],
)
def test_what_is_not_set_is_as_published(form: str, first: int, cfg: float, weights: tuple[float, ...]) -> None:
    task = tiny_task()
    plan = job_of("ant", task, {"form": form}).plan
    (source,) = plan.sources
    assert source.zones == {"early": (0.0, first / 50), "late": (first / 50, 1.0)}  # type: ignore[attr-defined]
    assert source.cfg == cfg  # type: ignore[attr-defined]
    assert tuple(term.weight for term in plan.terms) == weights
    assert {getattr(term, "w", cfg if form == "adapters" else 1.0) for term in plan.terms} == {
        cfg if form == "adapters" else 1.0
    }


def test_the_parts_of_the_empty_prompt_are_alive_after_a_step() -> None:
    run = _run({"sites": "cross"})
    with torch.no_grad(), run.active():
        for tensor in run.trainables.tensors.values():
            tensor.copy_(torch.randn(tensor.shape, generator=run.generator) * 0.1).requires_grad_()
        moment = run.draw()
        with gradients():
            losses = run.losses(moment)
            for loss in (losses[1], losses[3]):
                grads = torch.autograd.grad(loss, list(run.trainables.tensors.values()), retain_graph=True)
                assert any(bool(grad.any()) for grad in grads)


def test_masks_are_of_each_tensor_and_shared_by_all_names() -> None:
    one, two = _run({"share": 0.4}), _run({"share": 0.4}, ConceptList((Concept("ball", "box", ("heart",)),)))
    masks = []
    for run in (one, two):
        assert isinstance(run.plan.mask, Saliency)
        with torch.no_grad(), run.active():
            masks.append(run.plan.mask(run))
    assert [len(run.plan.mask.losses) for run in (one, two)] == [1, 2]  # type: ignore[union-attr]
    assert all(int(mask.sum()) == round(0.4 * mask.numel()) for mask in masks[0].values())
    shares = [float(mask.float().mean()) for mask in masks[1].values() if mask.numel() > 100]
    assert all(0 < share < 0.4 for share in shares)


def test_the_masks_hold_the_largest_gradients() -> None:
    run = _run({"sites": "cross"})
    mask = run.plan.mask
    assert isinstance(mask, Saliency)
    with torch.no_grad(), run.active():
        found = mask(run)
        run.generator = run.fork("saliency", 0)
        tensors = run.trainables.tensors
        for tensor in tensors.values():
            tensor.requires_grad_()
        with gradients():
            (loss,) = [own() for own in mask.losses[0](run)]
            grads = torch.autograd.grad(loss, list(tensors.values()))
    for name, grad in zip(tensors, grads, strict=True):
        assert grad.abs()[found[name]].min() >= grad.abs()[~found[name]].max()


def test_a_part_without_steps_is_refused() -> None:
    with pytest.raises(SettingError, match="keep_steps"):
        _run({"keep_steps": 10})


@pytest.mark.parametrize("form", ["masked", "adapters"])
def test_training_brings_the_loss_down_and_leaves_the_model_alone(form: str) -> None:
    task = tiny_task()
    settings = {**SHORT, "form": form, "cfg": 2.0, "sites": "cross"}
    job = job_of("ant", task, settings, steps=30, rate=1e-2, batch=2)
    before = {name: value.clone() for name, value in task.model.unet.state_dict().items()}  # type: ignore[union-attr]
    found = train(task, job)
    assert sum(found.losses["erase"][-5:]) < 0.85 * sum(found.losses["erase"][:5])
    after = task.model.unet.state_dict()  # type: ignore[union-attr]
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert found.eraser.adapters
