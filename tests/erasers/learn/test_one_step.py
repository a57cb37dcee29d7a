"""Distillation into one step: where it begins, the loss and its gradients, and the fake score's own training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lethe.erasers.algebra.hooks import gradients
from lethe.erasers.learn.loop import Job
from lethe.erasers.learn.moment import ANCHOR, CONCEPT, MAIN, TEACHER, Ask
from lethe.erasers.learn.one_step import FAKE, Distil, Fake, LearnFake, PureNoise, identity_loss, noised
from lethe.erasers.learn.own_adam import OwnAdam
from lethe.erasers.learn.run import Run
from lethe.erasers.learn.scenes import scene
from lethe.erasers.learn.space import denoised_from, mixed
from torch import Tensor
from toy_trainee import job_of, run_of, tiny_task

SCENES = (scene("ball", "box"),)
FAKE_SCORE = Fake(3.0, 2.0)
KINDS = pytest.mark.parametrize("kind", ["eps", "v", "flow"])


def _run(kind: str = "", **schedule: Any) -> Run:
    """Adapters that act, ready for gradients; `kind` is what the model says that it predicts."""
    task = tiny_task()
    job: Job = job_of("leco", task, batch=2, **schedule)
    run = run_of(job, task)
    if kind:
        run.model.prediction = lambda: kind  # type: ignore[method-assign]
    generator = torch.Generator().manual_seed(1)
    for name, tensor in run.trainables.tensors.items():
        if name.endswith(".up"):
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
    return run


def _other(run: Run) -> None:
    """A fake score that is neither the student nor the teacher."""
    generator = torch.Generator().manual_seed(2)
    own = run.trainables.tensors
    fake = {name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator) for name, tensor in own.items()}
    OwnAdam(FAKE, 0.0).step(run, fake, {})


def _ready(run: Run) -> list[Tensor]:
    return [tensor.requires_grad_() for tensor in run.trainables.tensors.values()]


@KINDS
def test_it_begins_at_noise_alone_of_one_level(kind: str) -> None:
    run = _run(kind)
    latents = PureNoise(SCENES, 0.625, "here").draw(run, 3)["here"]
    assert latents.noise is not None
    assert latents.sigma.tolist() == pytest.approx([float(run.model.level(torch.tensor([0.375])))] * 3)
    assert torch.allclose(latents.x, latents.sigma[:, None, None, None] * latents.noise)
    assert latents.scenes == SCENES * 3
    later = PureNoise(SCENES, 0.3).draw(run, 1)[MAIN]
    assert float(later.sigma[0]) < float(latents.sigma[0])


def test_what_is_drawn_is_noised_to_times_of_its_own_but_the_outermost() -> None:
    run = _run("flow")
    clean = torch.ones(400, 4, 8, 8)
    latents = noised(run, clean, SCENES)
    assert latents.noise is not None
    assert torch.allclose(latents.x, mixed("flow", clean, latents.noise, latents.sigma))
    low, high = (float(run.model.level(torch.tensor([1 - time]))) for time in (0.02, 0.98))
    assert low <= float(latents.sigma.min()) < 2 * low
    assert 0.8 * high < float(latents.sigma.max()) <= high


def test_the_loss_is_each_picture_s_product_in_units_of_its_distance() -> None:
    real, fake, drawn = torch.full((2, 1, 2, 2), 3.0), torch.full((2, 1, 2, 2), 2.0), torch.zeros(2, 1, 2, 2)
    drawn[1] = 1.0
    # 4 places of (3 - 2) (2 - 0) / 3, and of (3 - 2) (2 - 1) / 2.
    assert float(identity_loss(real, fake, drawn)) == pytest.approx((8 / 3 + 2) / 2)
    assert float(identity_loss(real, real, drawn)) == 0.0
    assert float(identity_loss(drawn, drawn, drawn)) == 0.0
    own = drawn.clone().requires_grad_()
    # The distance is a unit, not a part of the loss: -(3 - 2) / 3 and / 2 at each place, mean over two rows.
    (grad,) = torch.autograd.grad(identity_loss(real, fake, own), [own])
    assert torch.allclose(grad[0], torch.full((1, 2, 2), -1 / 6))
    assert torch.allclose(grad[1], torch.full((1, 2, 2), -1 / 4))


def test_scores_are_guided() -> None:
    run = _run()
    with torch.no_grad(), run.active(), run.trainables.off():
        latents = PureNoise(SCENES, 0.6).draw(run, 2)[MAIN]
        said, unsaid = (run.teacher(latents, run.features([prompt] * 2)) for prompt in ("box", ""))
        assert torch.allclose(FAKE_SCORE.guided(run, latents, ANCHOR), unsaid + 2.0 * (said - unsaid), atol=1e-5)


def _loss(run: Run, term: Distil, checkpoint: bool = False) -> tuple[float, list[Tensor]]:
    run.generator.manual_seed(3)
    with torch.no_grad(), run.active(checkpoint=checkpoint):
        moment = PureNoise(SCENES, 0.6).draw(run, 2)
        leaves = _ready(run)
        with gradients():
            loss = term.loss(run, moment, run.seen(term.asks(), moment))
            return loss.item(), list(torch.autograd.grad(loss, leaves))


def _plain(run: Run, term: Distil) -> tuple[float, list[Tensor]]:
    """The same in one graph."""
    run.generator.manual_seed(3)
    kind = run.model.prediction()
    with torch.no_grad(), run.active():
        moment = PureNoise(SCENES, 0.6).draw(run, 2)
        leaves, start = _ready(run), moment[MAIN]
        with gradients():
            said = run.student(start, run.of_role(Ask("student", term.role), start))
            drawn = denoised_from(kind, start.x, start.sigma, said)
            latents = noised(run, drawn, start.scenes)
            with run.trainables.off():
                real = FAKE_SCORE.guided(run, latents, term.teacher)
            with run.acting_as(FAKE_SCORE.tensors(run)):
                fake = FAKE_SCORE.guided(run, latents, term.role)
            seen = [denoised_from(kind, latents.x, latents.sigma, own) for own in (real, fake)]
            loss = identity_loss(seen[0], seen[1], drawn)
            return loss.item(), list(torch.autograd.grad(loss, leaves))


@KINDS
def test_gradients_are_those_of_the_whole_loss_through_both_scores(kind: str) -> None:
    run, term = _run(kind), Distil(FAKE_SCORE, ANCHOR)
    _other(run)
    (loss, found), (plain, expected) = _loss(run, term), _plain(run, term)
    assert loss == pytest.approx(plain, rel=1e-5)
    largest = max(float(own.abs().max()) for own in expected)
    assert largest > 1e-3
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-5 * largest) for a, b in zip(found, expected, strict=True))


def test_checkpoints_see_each_network_as_it_was() -> None:
    run, term = _run(), Distil(FAKE_SCORE, ANCHOR)
    _other(run)
    (plain, expected), (loss, found) = (_loss(run, term, checkpoint) for checkpoint in (False, True))
    assert loss == pytest.approx(plain, rel=1e-5)
    largest = max(float(own.abs().max()) for own in expected)
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-5 * largest) for a, b in zip(found, expected, strict=True))


def test_the_same_prompt_and_the_same_network_teach_nothing() -> None:
    run = _run()
    zero = {name: torch.zeros_like(tensor) for name, tensor in run.trainables.tensors.items()}
    OwnAdam(FAKE, 0.0).step(run, zero, {})
    loss, found = _loss(run, Distil(FAKE_SCORE))
    assert loss == 0.0
    swapped, others = _loss(run, Distil(FAKE_SCORE, ANCHOR))
    assert swapped != 0.0
    largest = max(float(own.abs().max()) for own in others)
    assert all(float(own.abs().max()) < 1e-4 * largest for own in found)


def test_the_student_s_step_leaves_the_fake_score_alone_and_the_other_way_round() -> None:
    run = _run()
    _other(run)
    before, own = dict(run.memory), {name: tensor.clone() for name, tensor in run.trainables.tensors.items()}
    _loss(run, Distil(FAKE_SCORE, ANCHOR))
    assert all(run.memory[name] is tensor for name, tensor in before.items())
    with torch.no_grad(), run.active(), gradients():
        loss = LearnFake(FAKE_SCORE, (PureNoise(SCENES, 0.6),)).loss(run, {}, {})
    assert not loss.requires_grad
    assert float(loss) == 0.0
    assert all(torch.equal(tensor, own[name]) for name, tensor in run.trainables.tensors.items())
    assert any(not torch.equal(run.memory[name], tensor) for name, tensor in before.items())


def test_the_fake_score_begins_as_the_student_and_has_a_step_for_each_source_at_its_own_speed() -> None:
    run = _run(rate=1e-3)
    own = run.trainables.tensors
    term = LearnFake(FAKE_SCORE, (PureNoise(SCENES, 0.6), PureNoise(SCENES, 0.6)))
    assert all(torch.equal(tensor, own[name]) for name, tensor in FAKE_SCORE.tensors(run).items())
    with torch.no_grad(), run.active(), gradients():
        term.loss(run, {}, {})
    moved = {name: float((tensor - own[name]).detach().abs().max()) for name, tensor in FAKE_SCORE.tensors(run).items()}
    # The first steps of Adam have the length of the rate.
    assert max(moved.values()) == pytest.approx(6e-3, rel=0.05)
    assert {int(count) for name, count in run.memory.items() if "/count/" in name} == {2}


@KINDS
def test_the_fake_score_s_first_step_is_towards_what_was_mixed_into_what_the_student_draws(kind: str) -> None:
    run, source = _run(kind, rate=1e-3), PureNoise(SCENES, 0.6)
    leaves = FAKE_SCORE.tensors(run)
    with torch.no_grad(), run.active():
        run.generator.manual_seed(9)
        start = source.draw(run, 2)[MAIN]
        said = run.student(start, run.of_role(Ask(TEACHER, CONCEPT), start))
        drawn = denoised_from(kind, start.x, start.sigma, said)
        seen = noised(run, drawn, start.scenes)
        assert seen.noise is not None
        s = seen.sigma[:, None, None, None]
        truth = {"eps": seen.noise, "flow": seen.noise - drawn, "v": (seen.noise - s * drawn) / (1 + s**2).sqrt()}[kind]
        with gradients(), run.acting_as(leaves):
            error = (FAKE_SCORE.guided(run, seen, CONCEPT) - truth).square().mean()
            grads = torch.autograd.grad(error, list(leaves.values()))
        run.generator.manual_seed(9)
        with gradients():
            LearnFake(FAKE_SCORE, (source,)).loss(run, {}, {})
    after = FAKE_SCORE.tensors(run)
    largest = max(float(grad.abs().max()) for grad in grads)
    for (name, before), grad in zip(leaves.items(), grads, strict=True):
        clear = grad.abs() > 1e-3 * largest
        # Adam's first step.
        expected = -3e-3 * grad / (grad.abs() + 1e-8)
        assert torch.allclose((after[name] - before).detach()[clear], expected[clear], atol=3e-5), name
