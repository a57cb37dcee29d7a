"""Gradients that are taken at once reach the loop as they are, through checkpoints and other strengths."""

from __future__ import annotations

import pytest
import torch
from lethe.erasers.algebra.hooks import gradients
from lethe.erasers.learn.moment import CONCEPT, MAIN, STUDENT, TEACHER, Ask
from lethe.erasers.learn.regress import Denoise, Regress, same
from lethe.erasers.learn.run import Run
from lethe.erasers.learn.spent import carried, spent
from lethe.erasers.learn.strength import AtStrength
from lethe.erasers.learn.uniform import Uniform
from torch import Tensor
from toy_trainee import job_of, run_of, tiny_task


def test_value_and_gradients_are_the_loss_s_and_its_graph_is_gone() -> None:
    leaf, other = torch.tensor([1.0, 2.0], requires_grad=True), torch.zeros(3, requires_grad=True)
    still = torch.ones(2)
    with gradients():
        found = spent((leaf**2).sum(), [leaf, other, still])
        assert found.item() == 5.0
        mine, none = torch.autograd.grad(3 * found, [leaf, other], allow_unused=True)
        assert mine is not None and torch.equal(mine, 6 * leaf.detach())
        assert none is None
        assert not spent((leaf**2).sum(), [still]).requires_grad
        assert not spent(torch.tensor(2.0), [leaf]).requires_grad
        value = carried(torch.tensor(7.0), [leaf, other], [torch.full((2,), 4.0), None])
        assert value.item() == 7.0
        assert torch.equal(torch.autograd.grad(value, [leaf])[0], torch.full((2,), 4.0))


def _run() -> Run:
    """Adapters that act, and clean latents."""
    task = tiny_task()
    run = run_of(job_of("sliders", task, {"sampling_steps": 3}, batch=2), task)
    generator = torch.Generator().manual_seed(1)
    for name, tensor in run.trainables.tensors.items():
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1 if name.endswith(".up") else tensor)
        tensor.requires_grad_()
    return run


def _gradients(run: Run, term: AtStrength | Regress | Denoise, checkpoint: bool = False) -> tuple[float, list[Tensor]]:
    source = Uniform(({CONCEPT: "ball", "null": ""},))
    run.generator.manual_seed(3)
    with torch.no_grad(), run.active(checkpoint=checkpoint):
        moment = source.draw(run, 2)
        with gradients():
            loss = term.loss(run, moment, run.seen(term.asks(), moment))
            grads = torch.autograd.grad(loss, list(run.trainables.tensors.values()))
    return loss.item(), list(grads)


TERM = Regress({(TEACHER, "null"): 1.0}, CONCEPT)


def test_at_strength_1_the_term_is_as_it_was() -> None:
    run = _run()
    (plain, expected), (loss, found) = (_gradients(run, term) for term in (TERM, AtStrength(TERM, 1.0)))
    assert loss == pytest.approx(plain, rel=1e-6)
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-8) for a, b in zip(found, expected, strict=True))


def test_at_strength_0_the_student_is_the_teacher() -> None:
    run = _run()
    assert _gradients(run, same(CONCEPT))[0] > 1e-6
    assert _gradients(run, AtStrength(same(CONCEPT), 0.0))[0] == 0.0


def test_another_strength_is_that_of_turned_adapters_and_leaves_the_student_as_it_is() -> None:
    run = _run()
    before = dict(run.trainables.tensors)
    loss, found = _gradients(run, AtStrength(TERM, -0.5))
    assert all(run.trainables.tensors[name] is tensor for name, tensor in before.items())
    turned = {n: (-0.5 * t if n.endswith(".up") else t).detach().requires_grad_() for n, t in before.items()}
    run.trainables.tensors.update(turned)
    plain, expected = _gradients(run, TERM)
    assert loss == pytest.approx(plain, rel=1e-6)
    for name, own, other in zip(before, found, expected, strict=True):
        factor = -0.5 if name.endswith(".up") else 1.0
        assert torch.allclose(own, factor * other, rtol=1e-4, atol=1e-8), name


def test_checkpoints_see_the_strength_that_the_loss_was_made_at() -> None:
    run, term = _run(), AtStrength(TERM, -1.0)
    (plain, expected), (loss, found) = (_gradients(run, term, checkpoint) for checkpoint in (False, True))
    assert loss == pytest.approx(plain, rel=1e-6)
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-7) for a, b in zip(found, expected, strict=True))


def test_the_teacher_s_predictions_are_asked_for_with_those_of_other_terms() -> None:
    term = AtStrength(TERM, -1.0)
    assert list(term.asks()) == [Ask(TEACHER, "null", MAIN)]
    assert Ask(STUDENT, CONCEPT, MAIN) in TERM.asks()
    assert (term.aim, term.weight) == (TERM.aim, TERM.weight)
