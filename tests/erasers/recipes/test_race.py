"""RACE: ESD with nothing attacked, the attack after its first half, and that it learns."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from lethe.erasers.algebra.hooks import gradients
from lethe.erasers.learn.loop import train
from lethe.erasers.learn.moment import ANCHOR, ATTACKED, CONCEPT, TEACHER, Ask
from lethe.erasers.learn.plan import CONSTANT
from toy_trainee import distance, gradient_names, job_of, run_of, tiny_task

QUICK = {"sampling_steps": 4, "trajectories": 2}


def test_the_first_loss_is_the_distance_to_the_replacement() -> None:
    task = tiny_task()
    run = run_of(job_of("race", task, {**QUICK, "latents": "fresh, student"}), task)
    with torch.no_grad(), run.active():
        moment = run.draw()
        run.make(moment)
        erase, keep = run.losses(moment)
        assert float(erase) == pytest.approx(4 * distance(run, moment, CONCEPT, ANCHOR), rel=1e-4)
        assert float(keep) == 0 and moment["x"].noise is not None and not moment["x"].x.requires_grad


@pytest.mark.parametrize("settings", [{"bound": 0.0, "plain": 0.0}, {"plain": 1.0}])
def test_without_attack_it_is_esd_to_the_bit(settings: dict[str, float]) -> None:
    task = tiny_task()
    found = [
        train(task, job_of(name, task, {**QUICK, **own}, steps=4, rate=1e-3, batch=2, course=CONSTANT)).losses["erase"]
        for name, own in (("race", settings), ("esd", {}))
    ]
    assert found[0] == found[1] and found[0][0] != found[0][-1]


def test_the_attacked_prompt_is_trained_and_only_the_chosen_layers() -> None:
    task = tiny_task()
    run = run_of(job_of("race", task, {**QUICK, "plain": 0.0, "attack_steps": 2}), task)
    with torch.no_grad(), run.active():
        moment = run.draw()
        run.make(moment)
        attacked, plain = (run.of_role(Ask(TEACHER, role), moment["x"]).states for role in (ATTACKED, CONCEPT))
        assert 0 < float((attacked - plain).abs().max()) <= 0.1 + 1e-6
        said, anchor, concept = (
            run.teacher(moment["x"], run.of_role(Ask(TEACHER, role), moment["x"]))
            for role in (ATTACKED, ANCHOR, CONCEPT)
        )
        for tensor in run.trainables.tensors.values():
            tensor.requires_grad_()
        with gradients():
            losses = run.losses(moment)
            found = gradient_names(run, losses)
    loss = float(losses[0].detach())
    assert loss == pytest.approx(float((said - 2 * anchor + concept).square().mean()), rel=1e-4)
    assert loss != pytest.approx(4 * float((concept - anchor).square().mean()), rel=1e-6)
    assert found == set(run.trainables.tensors) and all(".attn2." in name for name in found)


def test_the_lasso_holds_what_the_first_part_made() -> None:
    task = tiny_task()
    plain = {"attack_steps": 1, **QUICK}
    losses = [
        train(task, job_of("race", task, {**plain, "lasso": lasso}, steps=6, rate=1e-3)).losses["keep"]
        for lasso in (0.0, 1.0)
    ]
    assert not any(losses[0]) and not any(losses[1][:4]) and all(losses[1][4:])


def test_training_brings_the_loss_down_and_goes_on_as_if_never_stopped() -> None:
    task = tiny_task()
    job = job_of("race", task, {**QUICK, "attack_steps": 1, "lasso": 0.1}, steps=16, rate=1e-2)
    before = {name: value.clone() for name, value in task.model.unet.state_dict().items()}  # type: ignore[union-attr]
    found = train(task, job)
    assert sum(found.losses["erase"][-3:]) < 0.6 * sum(found.losses["erase"][:3])
    after = task.model.unet.state_dict()  # type: ignore[union-attr]
    assert all(torch.equal(before[name], after[name]) for name in before)
    half = train(task, replace(job, keep_state=True), watch=lambda progress: progress.step == 12)
    rest = train(task, replace(job, resumed=half.eraser))
    assert rest.losses == {aim: values[12:] for aim, values in found.losses.items()}
