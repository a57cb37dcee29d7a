"""TRCE's second stage: its losses before the first step, its latents, what it trains, and that it learns."""

from __future__ import annotations

import pytest
import torch
from lethe.erasers.algebra.hooks import gradients
from lethe.erasers.learn.loop import train
from lethe.erasers.learn.moment import ANCHOR, CONCEPT, NULL, STUDENT, TEACHER, Ask
from lethe.erasers.learn.rollout import levels
from lethe.erasers.recipes import trce_steer
from lethe.erasers.result import ContextOperator
from toy_trainee import distance, gradient_names, job_of, run_of, tiny_task

_FEW = {"sampling_steps": 10, "trajectories": 2, "templates": "none"}


def test_the_first_losses_are_those_of_stage_1() -> None:
    task = tiny_task()
    run = run_of(job_of("trce_steer", task, {**_FEW, "guidance": 3.0, "margin": 0.05}, batch=1), task)
    with torch.no_grad(), run.active():
        moment = run.draw()
        run.make(moment)
        concept, null, keep = run.losses(moment)
        latents = moment["x"]
        said = {
            role: run.teacher(latents, run.of_role(Ask(TEACHER, role), latents)) for role in (CONCEPT, ANCHOR, NULL)
        }
        prefer, reject = (4 * said[role] - 3 * said[NULL] for role in (ANCHOR, CONCEPT))
        for role, loss in ((CONCEPT, concept), (NULL, null)):
            own = run.student(latents, run.of_role(Ask(STUDENT, role), latents))
            errors = [(own - goal).square().mean() for goal in (prefer, reject)]
            expected = 0.5 * max(float(errors[0] - errors[1]) + 0.05, 0.0)
            assert float(loss) == pytest.approx(expected, rel=1e-4, abs=1e-7)
            assert expected > 0
        # The untouched model is nearer to the concept's target by g^2 d(concept, null).
        away = (said[CONCEPT] - reject).square().mean()
        assert float(away) == pytest.approx(9 * distance(run, moment, CONCEPT), rel=1e-4)
        assert float(keep) == pytest.approx(0.0, abs=1e-9)
        assert not latents.x.requires_grad


def test_without_a_prompt_it_is_held_where_stage_1_is_and_not_where_the_model_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = torch.Generator().manual_seed(1)
    down, up = (torch.randn(*shape, generator=generator) / 10 for shape in ((2, 192), (192, 2)))
    # The real stage 1 holds the empty prompt, so that nobody could tell the two apart.
    monkeypatch.setattr(trce_steer, "fitted", lambda *given: ContextOperator(down, up))
    task = tiny_task()
    run = run_of(job_of("trce_steer", task, _FEW, batch=2), task)
    with torch.no_grad(), run.active():
        moment = run.draw()
        run.make(moment)
        latents = moment["unprompted"]
        asks = [Ask(TEACHER, "null after stage 1", "unprompted"), Ask(TEACHER, NULL, "unprompted")]
        seen = run.seen(asks, moment)
        own = run.student(latents, run.of_role(Ask(STUDENT, NULL, "unprompted"), latents))
        torch.testing.assert_close(own, seen[asks[0]])
        assert float((own - seen[asks[1]]).abs().max()) > 1e-3
        assert float(run.losses(moment)[-1]) == pytest.approx(0.0, abs=1e-9)


def test_latents_are_of_the_early_part_and_those_without_a_prompt_of_any() -> None:
    task = tiny_task()
    run = run_of(job_of("trce_steer", task, {**_FEW, "early": 0.3}, batch=200), task)
    with torch.no_grad(), run.active():
        moment, known = run.draw(), levels(run.model, 10)[:10]
    assert set(moment["x"].sigma.tolist()) == set(known[:3].tolist())
    assert set(moment["unprompted"].sigma.tolist()) == set(known.tolist())
    assert {scene[CONCEPT] for scene in moment["unprompted"].scenes} == {""}


def test_exactly_self_attention_and_queries_get_gradients() -> None:
    task = tiny_task()
    run = run_of(job_of("trce_steer", task, _FEW), task)
    with torch.no_grad(), run.active():
        moment = run.draw()
        run.make(moment)
        for tensor in run.trainables.tensors.values():
            tensor.requires_grad_()
        with gradients():
            found = gradient_names(run, run.losses(moment))
    layers = {name for name, module in run.model.modules("").items() if isinstance(module, torch.nn.Linear)}
    assert found == {name for name in layers if ".attn1." in name or name.endswith("attn2.to_q")} != set()


def test_training_brings_the_loss_down_and_leaves_the_model_alone() -> None:
    task = tiny_task()
    settings = {**_FEW, "sampling_steps": 2, "trajectories": 1, "guidance": 3.0, "margin": 0.01, "keep_weight": 1.0}
    job = job_of("trce_steer", task, settings, steps=15, rate=5e-3, batch=1)
    before = {name: value.clone() for name, value in task.model.unet.state_dict().items()}  # type: ignore[union-attr]
    found = train(task, job)
    assert sum(found.losses["erase"][-5:]) < 0.5 * sum(found.losses["erase"][:5])
    assert max(found.losses["keep"]) > 0
    after = task.model.unet.state_dict()  # type: ignore[union-attr]
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert set(found.eraser.context) == {"clip_l"} and found.eraser.adapters
