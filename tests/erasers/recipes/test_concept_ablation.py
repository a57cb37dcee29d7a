"""Concept Ablation: the value of its losses before the first step, where gradients go, and that it learns."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from lethe.erasers.algebra.hooks import gradients
from lethe.erasers.concepts import Concept, ConceptList
from lethe.erasers.learn.loop import train
from lethe.erasers.learn.moment import ANCHOR, CONCEPT, STILL, STUDENT, Ask, Moment
from lethe.erasers.learn.run import Run
from torch import Tensor
from toy_trainee import distance, gradient_names, job_of, run_of, tiny_task

SHORT = {"pictures": 3, "sampling_steps": 4}


def _run(settings: dict[str, Any] | None = None) -> Run:
    task = tiny_task()
    return run_of(job_of("concept_ablation", task, {**SHORT, **(settings or {})}), task)


def _wake(run: Run) -> None:
    for tensor in run.trainables.tensors.values():
        tensor.requires_grad_()


def test_the_first_loss_is_the_distance_to_the_anchor() -> None:
    run = _run()
    with torch.no_grad(), run.active():
        moment = run.draw()
        (loss,) = run.losses(moment)
        assert float(loss) == pytest.approx(distance(run, moment, CONCEPT, ANCHOR), rel=1e-4)
        assert float(loss) > 0
        assert not moment["x"].x.requires_grad


def test_pictures_show_the_anchor() -> None:
    run, others = _run(), _run()
    with torch.no_grad(), run.active():
        one = run.draw()["x"].clean
        (source,) = others.plan.sources
        anchors = tuple({**scene, CONCEPT: "tree"} for scene in source.scenes)  # type: ignore[attr-defined]
        other = type(source)(**{**vars(source), "scenes": anchors}).draw(others, 4)["x"].clean
        assert one is not None and other is not None
        assert torch.equal(one, other)


def test_the_noise_based_loss_of_the_anchor_is_the_ordinary_one() -> None:
    run = _run({"form": "noise-based"})
    with torch.no_grad(), run.active():
        moment = run.draw()
        latents = moment["x"]
        assert latents.noise is not None
        said = run.teacher(latents, run.features([scene[CONCEPT] for scene in latents.scenes]))
        (loss,) = run.losses(moment)
        # The tiny model predicts noise, so its own space is that of the noise.
        assert float(loss) == pytest.approx(float((said - latents.noise).square().mean()), rel=1e-3)


def test_the_target_is_the_student_itself_and_gives_no_gradient() -> None:
    run = _run()
    with torch.no_grad(), run.active():
        for tensor in run.trainables.tensors.values():
            tensor.copy_(torch.randn(tensor.shape, generator=run.generator) * 0.1)
        moment = run.draw()
        _wake(run)
        asks = [Ask(STUDENT, CONCEPT), Ask(STILL, ANCHOR)]
        with gradients():
            seen = run.seen(asks, moment)
        assert seen[asks[0]].requires_grad
        assert not seen[asks[1]].requires_grad
        with gradients():
            (loss,) = run.losses(moment)
        assert float(loss) == pytest.approx(float((seen[asks[0]] - seen[asks[1]]).square().mean()), rel=1e-4)
        assert float(loss) != pytest.approx(float((seen[asks[0]] - _teacher(run, moment)).square().mean()), rel=1e-3)


def _teacher(run: Run, moment: Moment) -> Tensor:
    latents = moment["x"]
    return run.teacher(latents, run.features([scene[ANCHOR] for scene in latents.scenes]))


@pytest.mark.parametrize("still", [True, False])
def test_the_first_token_gives_its_keys_and_values_no_gradient(still: bool) -> None:
    run = _run({"still_first": still})
    with torch.no_grad(), run.active():
        moment = run.draw()
        _wake(run)
        context = run.features(["a ball"] * 4)
        states = context.states.clone().requires_grad_()
        with gradients():
            said = run.student(moment["x"], type(context)(states))
            (grad, *own) = torch.autograd.grad(said.square().mean(), [states, *run.trainables.tensors.values()])
    assert bool(grad[:, 0].any()) is not still
    assert bool(grad[:, 1:].any())
    assert all(bool(part.any()) for part in own)


def test_detaching_changes_no_prediction() -> None:
    runs = _run({"still_first": True}), _run({"still_first": False})
    losses = []
    for run in runs:
        with torch.no_grad(), run.active():
            for tensor in run.trainables.tensors.values():
                tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
            losses.append(float(run.losses(run.draw())[0]))
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("sites", "inside"),
    [("cross-kv", (".attn2.to_k", ".attn2.to_v")), ("cross", (".attn2.to_k", ".attn2.to_v", ".to_q", ".to_out.0"))],
)
def test_exactly_the_chosen_layers_get_gradients(sites: str, inside: tuple[str, ...]) -> None:
    run = _run({"sites": sites})
    with torch.no_grad(), run.active():
        moment = run.draw()
        _wake(run)
        with gradients():
            found = gradient_names(run, run.losses(moment))
    assert found == {name for name in run.model.modules(r"\.attn2\.") if name.endswith(inside)} != set()


def test_the_regulariser_looks_at_other_draws_of_the_same_pictures() -> None:
    run = _run({"lam": 0.5, "pictures": 1})
    with torch.no_grad(), run.active():
        moment = run.draw()
        first, again = moment["x"], moment["again"]
        assert first.clean is not None and again.clean is not None and again.noise is not None
        assert torch.equal(first.clean, again.clean)
        assert not torch.equal(first.noise, again.noise)  # type: ignore[arg-type]
        assert not torch.equal(first.sigma, again.sigma)
        said = run.teacher(again, run.features([scene[ANCHOR] for scene in again.scenes]))
        _, loss = run.losses(moment)
        assert float(loss) == pytest.approx(0.5 * float((said - again.noise).square().mean()), rel=1e-3)


def test_a_concept_without_a_replacement_goes_to_the_empty_prompt() -> None:
    task = tiny_task(ConceptList((Concept("ball"),)))
    run = run_of(job_of("concept_ablation", task, SHORT), task)
    with torch.no_grad(), run.active():
        moment = run.draw()
        assert float(run.losses(moment)[0]) == pytest.approx(distance(run, moment, CONCEPT), rel=1e-4)


def test_training_brings_the_loss_down_and_leaves_the_model_alone() -> None:
    task = tiny_task()
    job = job_of("concept_ablation", task, {**SHORT, "lam": 0.1}, steps=30, rate=3e-3)
    before = {name: value.clone() for name, value in task.model.unet.state_dict().items()}  # type: ignore[union-attr]
    # On the same draws as a student that stays where it is.
    stays, found = train(task, replace(job, schedule=replace(job.schedule, rate=0.0))), train(task, job)
    assert sum(found.losses["erase"][-10:]) < 0.6 * sum(stays.losses["erase"][-10:])
    after = task.model.unet.state_dict()  # type: ignore[union-attr]
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(name.endswith((".to_k.weight", ".to_v.weight")) for name in found.eraser.adapters)
    assert not any(module._forward_hooks for module in task.model.unet.modules())  # type: ignore[union-attr]
