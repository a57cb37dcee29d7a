"""All but One, as inferred: its first losses, that only the guidance counts, and that it learns."""

from __future__ import annotations

import pytest
import torch
from lethe.erasers.algebra.hooks import gradients
from lethe.erasers.concepts import Concept, ConceptList
from lethe.erasers.learn.loop import train
from lethe.erasers.learn.moment import ANCHOR, CONCEPT, NULL, STILL, STUDENT, Ask
from toy_trainee import distance, gradient_names, job_of, run_of, tiny_task


@pytest.mark.parametrize("replacement", ["box", ""])
def test_the_first_losses(replacement: str) -> None:
    task = tiny_task(ConceptList((Concept("ball", replacement),)))
    run = run_of(job_of("all_but_one", task, {"sampling_steps": 6}), task)
    with torch.no_grad(), run.active():
        moment = run.draw()
        guide, null = run.losses(moment)
        assert float(guide) == pytest.approx(distance(run, moment, CONCEPT, ANCHOR), rel=1e-4)
        assert float(null) == pytest.approx(0.0, abs=1e-12)


def test_what_moves_both_branches_does_not_count() -> None:
    task = tiny_task()
    run = run_of(job_of("all_but_one", task, {"sampling_steps": 6, "keep": 2.0}), task)
    with torch.no_grad(), run.active():
        moment = run.draw()
        guide, null = run.plan.terms
        seen = run.seen([*guide.asks(), *null.asks()], moment)
        field = torch.randn(seen[Ask(STUDENT, CONCEPT)].shape, generator=run.generator)
        drifted = {ask: said + field if ask.source in (STUDENT, STILL) else said for ask, said in seen.items()}
        first, second = (float(guide.loss(run, moment, each)) for each in (seen, drifted))
        assert first == pytest.approx(second, rel=1e-4)
        assert float(null.loss(run, moment, drifted)) == pytest.approx(float(field.square().mean()), rel=1e-4)
    assert null.weight == 2.0


def test_the_guidance_term_does_not_train_the_empty_prompt() -> None:
    task = tiny_task()
    run = run_of(job_of("all_but_one", task, {"sampling_steps": 4}), task)
    with torch.no_grad(), run.active():
        moment = run.draw()
        for tensor in run.trainables.tensors.values():
            tensor.requires_grad_()
        with gradients():
            seen = run.seen([ask for term in run.plan.terms for ask in term.asks()], moment)
            assert not seen[Ask(STILL, NULL)].requires_grad and seen[Ask(STUDENT, NULL)].requires_grad
            found = gradient_names(run, run.losses(moment))
    assert found == set(run.trainables.tensors) and all(".attn2." in name for name in found)
    assert Ask(STUDENT, NULL) not in run.plan.terms[0].asks()


def test_training_brings_the_loss_down_and_leaves_the_model_alone() -> None:
    task = tiny_task()
    job = job_of("all_but_one", task, {"sampling_steps": 6, "trajectories": 2}, steps=50, rate=3e-3, batch=2)
    before = {name: value.clone() for name, value in task.model.unet.state_dict().items()}  # type: ignore[union-attr]
    found = train(task, job)
    assert sum(found.losses["erase"][-5:]) < 0.5 * sum(found.losses["erase"][:5])
    assert found.losses["keep"][-1] < 0.2 * found.losses["erase"][0]
    after = task.model.unet.state_dict()  # type: ignore[union-attr]
    assert all(torch.equal(before[name], after[name]) for name in before)
