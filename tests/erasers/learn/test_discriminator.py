"""The discriminator: its shapes, its own training, and that a run which goes on plays on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lethe.erasers.algebra.hooks import gradients
from lethe.erasers.learn.discriminator import FAKE, REAL, Domain, called, fresh, has_begun, judged
from lethe.erasers.learn.moment import Ask, Latents
from lethe.erasers.learn.run import Run
from torch import Tensor
from toy_trainee import job_of, run_of, tiny_task


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize(
    ("side", "kernels", "patches"), [(64, [4] * 5, 2), (16, [4, 4, 4, 3, 3], 2), (7, [4, 3, 3, 3, 3], 3)]
)
def test_latents_of_any_size_are_judged(side: int, kernels: list[int], patches: int) -> None:
    weights = fresh((4, side, side), _generator())
    assert [weights[f"{i}.weight"].shape[-1] for i in range(5)] == kernels
    assert [weights[f"{i}.weight"].shape[0] for i in range(5)] == [64, 128, 256, 512, 1]
    assert {name for name in weights if name.endswith(".scale")} == {"1.scale", "2.scale", "3.scale"}
    assert judged(weights, torch.randn(1, 4, side, side, generator=_generator())).shape == (1, 1, patches, patches)


def test_swapped_labels_are_the_same_game() -> None:
    logits = torch.randn(3, 1, 2, 2, generator=_generator())
    assert float(called(logits, REAL)) == pytest.approx(float(called(-logits, FAKE)))
    assert float(called(torch.full((2, 1), 9.0), REAL)) > float(called(torch.full((2, 1), 9.0), FAKE))


def _run(**schedule: Any) -> Run:
    task = tiny_task()
    return run_of(job_of("doco", task, {"pictures": 2, "sampling_steps": 3}, **schedule), task)


def _seen(term: Domain, seed: int = 0) -> tuple[dict[str, Latents], dict[Ask, Tensor]]:
    """A step at which the fake has larger values than the real one."""
    generator = torch.Generator().manual_seed(seed)
    x, noise = (torch.randn(4, 4, 8, 8, generator=generator) for _ in range(2))
    latents = Latents(x, torch.full((4,), 0.5), ())
    fake, real = term.asks()
    return {"x": latents}, {fake: (noise * 3).requires_grad_(), real: torch.randn(4, 4, 8, 8, generator=generator)}


def test_it_learns_to_tell_the_two_apart() -> None:
    run, term = _run(), Domain(1e-3, 0.0)
    losses = []
    for _ in range(30):
        moment, seen = _seen(term)
        with gradients():
            losses.append(term.loss(run, moment, seen).item())
    assert losses[0] == pytest.approx(0.693, abs=0.3)
    assert losses[-1] > 1.4 * losses[0]


def test_its_steps_are_those_of_adam() -> None:
    run, term = _run(), Domain(1e-3, 0.0)
    own = {n: t.clone().requires_grad_() for n, t in fresh(run.model.latent_shape(), run.fork("discriminator")).items()}
    optimizer = torch.optim.Adam(own.values(), lr=1e-3, betas=(0.5, 0.999))
    for step in range(3):
        moment, seen = _seen(term, step)
        with gradients():
            term.loss(run, moment, seen)
            fake, real = (moment["x"].x - 0.5 * seen[ask].detach() for ask in term.asks())
            loss = called(judged(own, real), REAL) + called(judged(own, fake), FAKE)
            grads = torch.autograd.grad(loss, list(own.values()))
        for tensor, grad in zip(own.values(), grads, strict=True):
            tensor.grad = grad
        optimizer.step()
    for name, tensor in own.items():
        assert torch.allclose(run.memory[f"discriminator.{name}"], tensor, rtol=1e-3, atol=2e-5), name


def test_the_student_plays_against_the_weights_before_the_step() -> None:
    run, term = _run(), Domain(1e-2, 0.0)
    for _ in range(2):
        moment, seen = _seen(term)
        before = {name.removeprefix("discriminator."): tensor for name, tensor in run.memory.items()}
        before = before if before else fresh(run.model.latent_shape(), run.fork("discriminator"))
        with gradients():
            loss = term.loss(run, moment, seen)
            fake = moment["x"].x - 0.5 * seen[term.asks()[0]]
            expected = called(judged(before, fake), REAL)
            assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
            found, own = (torch.autograd.grad(value, seen[term.asks()[0]])[0] for value in (loss, expected))
        assert torch.allclose(found, own, rtol=1e-4, atol=1e-9)
        assert bool(found.any())


def test_memory_is_replaced_and_never_changed() -> None:
    run, term = _run(), Domain(1e-2, 0.0)
    for _ in range(2):
        kept = dict(run.memory)
        copies = {name: tensor.clone() for name, tensor in kept.items()}
        moment, seen = _seen(term)
        with gradients():
            term.loss(run, moment, seen)
        assert all(torch.equal(tensor, copies[name]) for name, tensor in kept.items())
        assert not any(tensor.requires_grad for tensor in run.memory.values())
    assert any(not torch.equal(run.memory[name], copies[name]) for name in copies)


def test_it_learns_alone_for_a_share_of_the_steps_that_a_longer_run_keeps() -> None:
    run, term = _run(steps=8), Domain(1e-3, 0.5)
    for step, alone in ((0, True), (3, True), (4, False)):
        run.step = step
        moment, seen = _seen(term)
        with gradients():
            assert term.loss(run, moment, seen).requires_grad is not alone
    longer = _run(steps=80)
    longer.memory = dict(run.memory)
    longer.step = 5
    assert has_begun(longer, 0.5)
    assert not has_begun(_run(steps=80), 0.5)
