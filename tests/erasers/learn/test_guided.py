"""The term on guided predictions."""

from __future__ import annotations

import pytest
import torch
from lethe.erasers.learn.guided import RegressGuided
from lethe.erasers.learn.moment import CONCEPT, NULL, STUDENT, TEACHER, Ask
from lethe.erasers.learn.regress import Regress
from toy_trainee import job_of, run_of, tiny_task


def _seen() -> dict[Ask, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    asks = [Ask(source, role) for source in (STUDENT, TEACHER) for role in (CONCEPT, NULL)]
    return {ask: torch.randn(2, 4, 8, 8, generator=generator, requires_grad=ask.source == STUDENT) for ask in asks}


@pytest.mark.parametrize("eta", [1.0, -1.0, 0.3])
def test_without_guidance_it_is_the_ordinary_regression(eta: float) -> None:
    task = tiny_task()
    run, seen = run_of(job_of("esd", task), task), _seen()
    plain = Regress({(TEACHER, NULL): 1 - eta, (TEACHER, CONCEPT): eta})
    found = RegressGuided(eta, 1.0).loss(run, {}, seen)
    assert found.item() == pytest.approx(plain.loss(run, {}, seen).item(), rel=1e-5)


def test_both_predictions_are_guided_and_trained() -> None:
    task = tiny_task()
    run, seen = run_of(job_of("esd", task), task), _seen()
    own, other, said, unsaid = (seen[ask] for ask in RegressGuided(1.0, 1.0).asks())
    loss = RegressGuided(-0.5, 4.0).loss(run, {}, seen)
    guided, target = 4 * own - 3 * other, unsaid - 0.5 * 4 * (said - unsaid)
    assert loss.item() == pytest.approx((guided - target).square().mean().item(), rel=1e-5)
    grads = torch.autograd.grad(loss, [own, other])
    assert torch.allclose(grads[0] * -3, grads[1] * 4, atol=1e-6)
    assert bool(grads[0].any())
