"""AdvUnlearn: what it trains, its losses before the first step, its adversary, and that it learns."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from lethe.erasers.algebra.hooks import gradients
from lethe.erasers.concepts import Concept, ConceptList
from lethe.erasers.learn.after import After
from lethe.erasers.learn.loop import train
from lethe.erasers.learn.moment import ANCHOR, ATTACKED, CONCEPT, NULL, TEACHER, Ask
from lethe.erasers.learn.soft_tokens import Attacked
from toy_trainee import distance, gradient_names, job_of, run_of, tiny_task

QUICK = {"sampling_steps": 4, "trajectories": 1, "attack_steps": 2, "kept_rows": 2}


@pytest.mark.parametrize(("eta", "factor"), [(1.0, 4.0), (2.0, 9.0)])
@pytest.mark.parametrize(("neutral", "role"), [("replacement", ANCHOR), ("empty", NULL)])
def test_without_attack_the_first_losses_are_esds_and_none(eta: float, factor: float, neutral: str, role: str) -> None:
    task = tiny_task()
    run = run_of(job_of("adv_unlearn", task, {**QUICK, "eta": eta, "plain": 1.0, "neutral": neutral}), task)
    with torch.no_grad(), run.active():
        moment = run.draw()
        run.make(moment)
        erase, keep = run.losses(moment)
        assert float(erase) == pytest.approx(factor * distance(run, moment, CONCEPT, role), rel=1e-4)
        assert float(keep) == pytest.approx(0, abs=1e-10)
        assert len(moment["kept"].x) == QUICK["kept_rows"] * len(moment["x"].x)
        assert {scene[CONCEPT] for scene in moment["kept"].scenes} <= {"tree", "a green heart"}


@pytest.mark.parametrize(("trajectories", "prompts"), [(1, 2), (2, 3), (16, 3)])
def test_as_many_prompts_are_kept_as_rows_are_drawn_of_them(trajectories: int, prompts: int) -> None:
    kept = ("a green heart", "a red moon", "a blue fish")
    task = tiny_task(ConceptList((Concept("ball"),), kept))
    run = run_of(job_of("adv_unlearn", task, {**QUICK, "trajectories": trajectories}, batch=40), task)
    with torch.no_grad(), run.active():
        scenes = run.draw()["kept"].scenes
    assert len({scene[CONCEPT] for scene in scenes}) == prompts


@pytest.mark.parametrize("form", ["full", "low rank"])
@pytest.mark.parametrize(
    ("sites", "inside"),
    [
        ("all", lambda name, last: ".encoder.layers." in name),
        ("mlp + last attention", lambda name, last: ".mlp.fc" in name or f".layers.{last}.self_attn." in name),
    ],
)
def test_exactly_the_text_encoders_layers_get_gradients(sites: str, inside: object, form: str) -> None:
    task = tiny_task()
    assert callable(inside)
    run = run_of(job_of("adv_unlearn", task, {**QUICK, "sites": sites, "form": form, "plain": 0.0}), task)
    assert task.model is not None
    modules = dict(task.model.tower().module.named_modules())
    last = max(int(name.split(".layers.")[1].split(".")[0]) for name in modules if ".layers." in name)
    with torch.no_grad(), run.active():
        moment = run.draw()
        run.make(moment)
        for tensor in run.trainables.tensors.values():
            tensor.requires_grad_()
        with gradients():
            found = gradient_names(run, [run.losses(moment)[0]])
    linear = {n for n, module in modules.items() if isinstance(module, torch.nn.Linear) and inside(n, last)}
    stream = task.model.tower().stream
    ends = ("",) if form == "full" else (".down", ".up")
    assert found == {f"{stream}.{name}{end}" for name in linear for end in ends} != set()


def test_the_student_is_trained_on_what_the_adversary_found() -> None:
    task = tiny_task()
    run = run_of(job_of("adv_unlearn", task, {**QUICK, "plain": 0.0, "attack_rate": 0.1}), task)
    term = run.plan.terms[0]
    assert isinstance(term, Attacked) and isinstance(run.plan.makers[ATTACKED], After)
    with torch.no_grad(), run.active():
        moment = run.draw()
        run.make(moment)
        erase = run.losses(moment)[0]
        made = run.of_role(Ask(TEACHER, ATTACKED), moment["x"])
        said = run.teacher(moment["x"], made)
        plain, anchor = (
            run.teacher(moment["x"], run.of_role(Ask(TEACHER, role), moment["x"])) for role in (CONCEPT, ANCHOR)
        )
        assert float(erase) == pytest.approx(float((said - (2 * anchor - plain)).square().mean()), rel=1e-4)
        assert float((said - plain).abs().max()) > 1e-3


def test_training_brings_the_losses_down_and_leaves_both_models_alone() -> None:
    task = tiny_task()
    job = job_of("adv_unlearn", task, {**QUICK, "sampling_steps": 2, "attack_steps": 1}, steps=12, rate=1e-2)
    states = [task.model.unet.state_dict(), task.model.text_model.state_dict()]  # type: ignore[union-attr]
    before = [{name: value.clone() for name, value in state.items()} for state in states]
    found = train(task, job)
    assert sum(found.losses["erase"][-3:]) < 0.6 * sum(found.losses["erase"][:3])
    assert all(torch.equal(old[n], new[n]) for old, new in zip(before, states, strict=True) for n in old)
    assert found.eraser.text_encoder and not found.eraser.adapters


def test_a_run_that_goes_on_is_the_run_that_never_stopped() -> None:
    task = tiny_task()
    settings = {**QUICK, "start": "latest", "plain": 0.4}
    job = job_of("adv_unlearn", task, settings, steps=4, rate=1e-3)
    whole = train(task, job)
    half = train(task, replace(job, keep_state=True), watch=lambda progress: progress.step == 2)
    rest = train(task, replace(job, resumed=half.eraser))
    assert whole.losses["erase"][2:] == rest.losses["erase"]
