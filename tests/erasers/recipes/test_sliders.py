"""Concept Sliders: the displacement of their target, its first loss, what is trained and what is rolled out."""

from __future__ import annotations

import pytest
import torch
from lethe.erasers.algebra.hooks import gradients
from lethe.erasers.concepts import Concept, ConceptList
from lethe.erasers.learn.loop import train
from lethe.erasers.learn.moment import ANCHOR, CONCEPT, TEACHER, Ask
from lethe.erasers.learn.poles import NEUTRAL
from lethe.erasers.learn.regress import Regress
from toy_trainee import distance, gradient_names, job_of, run_of, tiny_task


def test_swapped_poles_turn_the_displacement_round() -> None:
    task, swapped = tiny_task(), tiny_task(ConceptList((Concept("box", "ball"),)))
    found = []
    latents = None
    for each in (task, swapped):
        run = run_of(job_of("sliders", each, {"sampling_steps": 4, "templates": "object"}, batch=4), each)
        with torch.no_grad(), run.active():
            moment = dict(run.draw())
            here = moment["x"]
            # The same latents and sentences for both, each with its own prompts.
            latents = latents or here
            scenes = run.plan.sources[0].scenes  # type: ignore[attr-defined]
            prompts = tuple(next(s for s in scenes if s[NEUTRAL] == one[NEUTRAL]) for one in latents.scenes)
            moment["x"] = type(here)(latents.x, latents.sigma, prompts)
            (term,) = run.plan.terms
            assert isinstance(term, Regress)
            seen = run.seen(term.asks(), moment)
            target = sum(weight * seen[Ask(*key)] for key, weight in term.target.items())
            found.append(target - seen[Ask(TEACHER, NEUTRAL)])
    assert float(found[0].abs().mean()) > 1e-3
    assert torch.allclose(found[0], -found[1], atol=1e-5)


@pytest.mark.parametrize(("eta", "attributes"), [(4.0, False), (2.0, True)])
def test_the_first_loss_is_the_distance_of_the_poles(eta: float, attributes: bool) -> None:
    task = tiny_task()
    run = run_of(job_of("sliders", task, {"eta": eta, "attributes": attributes, "sampling_steps": 6}, batch=6), task)
    with torch.no_grad(), run.active():
        moment = run.draw()
        found = float(run.losses(moment)[0])
        assert found == pytest.approx(eta**2 * distance(run, moment, CONCEPT, ANCHOR), rel=1e-4)
    said = {scene[CONCEPT] for scene in run.plan.sources[0].scenes}  # type: ignore[attr-defined]
    assert said == ({"ball", "tree ball", "a green heart ball"} if attributes else {"ball"})


@pytest.mark.parametrize(("target", "role"), [("neutral", NEUTRAL), ("concept", CONCEPT)])
def test_the_target_is_rolled_out_against_the_opposite_pole(target: str, role: str) -> None:
    task = tiny_task()
    run = run_of(job_of("sliders", task, {"target": target, "sampling_steps": 4}), task)
    with torch.no_grad(), run.active():
        latents = run.draw()["x"]
        assert set(latents.known) == {role, ANCHOR}
        opposite = run.teacher(latents, run.features(["box"] * len(latents.x)))
        assert torch.allclose(latents.known[ANCHOR], opposite, atol=1e-5)
    (term,) = run.plan.terms
    assert isinstance(term, Regress) and term.student == role


def test_cross_attention_stays_as_it_is() -> None:
    task = tiny_task()
    run = run_of(job_of("sliders", task, {"sampling_steps": 4}), task)
    with torch.no_grad(), run.active():
        moment = run.draw()
        for tensor in run.trainables.tensors.values():
            tensor.requires_grad_()
        with gradients():
            found = gradient_names(run, run.losses(moment))
    assert found == set(run.trainables.tensors) and not any(".attn2." in name for name in found)
    assert any(".attn1." in name for name in found) and any(".resnets." in name for name in found)


def test_training_brings_the_loss_down_and_leaves_the_model_alone() -> None:
    task = tiny_task()
    job = job_of("sliders", task, {"sampling_steps": 6, "trajectories": 2}, steps=50, rate=1e-2, batch=2)
    before = {name: value.clone() for name, value in task.model.unet.state_dict().items()}  # type: ignore[union-attr]
    found = train(task, job)
    assert found.losses["erase"][0] > 1e-3
    assert sum(found.losses["erase"][-5:]) < 0.7 * sum(found.losses["erase"][:5])
    after = task.model.unet.state_dict()  # type: ignore[union-attr]
    assert all(torch.equal(before[name], after[name]) for name in before)
