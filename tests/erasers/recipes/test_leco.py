"""LECO: with its defaults it is ESD for an adapter; its prompts and its action; that it learns."""

from __future__ import annotations

import pytest
import torch
from lethe.erasers.algebra.hooks import gradients
from lethe.erasers.concepts import Concept, ConceptList
from lethe.erasers.learn.loop import train
from lethe.erasers.learn.moment import ANCHOR, CONCEPT, NULL, TEACHER, Ask
from lethe.erasers.learn.regress import Regress
from toy_trainee import distance, gradient_names, job_of, run_of, tiny_task

ALONE = ConceptList((Concept("ball"),))


@pytest.mark.parametrize("settings", [{}, {"neutral": "empty"}])
def test_without_a_neutral_prompt_it_is_esd(settings: dict[str, str]) -> None:
    task = tiny_task(ALONE if not settings else ConceptList((Concept("ball", "box"),)))
    found = []
    for name, own in (("leco", settings), ("esd", {"neutral": "empty"})):
        run = run_of(job_of(name, task, {"sampling_steps": 6, **own}, batch=4), task)
        with torch.no_grad(), run.active():
            moment = run.draw()
            found.append((moment["x"].x, moment["x"].sigma, run.losses(moment)[0]))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    assert float(found[0][2]) == pytest.approx(float(found[1][2]), rel=1e-5)


def test_targets_lie_around_the_neutral_prompt() -> None:
    task = tiny_task()
    targets = []
    for action in ("erase", "enhance"):
        run = run_of(job_of("leco", task, {"action": action, "eta": 2.0, "sampling_steps": 6}), task)
        with torch.no_grad(), run.active():
            moment = run.draw()
            (term,) = run.plan.terms
            assert isinstance(term, Regress)
            seen = run.seen(term.asks(), moment)
            targets.append(torch.stack([weight * seen[Ask(*key)] for key, weight in term.target.items()]).sum(0))
            neutral, concept, null = (
                run.teacher(moment["x"], run.features([scene[role] for scene in moment["x"].scenes]))
                for role in (ANCHOR, CONCEPT, NULL)
            )
    assert torch.allclose((targets[0] + targets[1]) / 2, neutral, atol=1e-5)
    assert torch.allclose(targets[0], neutral - 2 * (concept - null), atol=1e-5)
    assert all(source == TEACHER for source, _ in term.target)


@pytest.mark.parametrize(("sites", "part"), [("blocks", "attentions."), ("cross", ".attn2."), ("all", "")])
def test_adapters_of_the_chosen_layers_get_gradients(sites: str, part: str) -> None:
    task = tiny_task()
    run = run_of(job_of("leco", task, {"sites": sites, "sampling_steps": 4}), task)
    with torch.no_grad(), run.active():
        moment = run.draw()
        for tensor in run.trainables.tensors.values():
            tensor.requires_grad_()
        with gradients():
            found = gradient_names(run, run.losses(moment))
    assert found == set(run.trainables.tensors) != set() and all(part in name for name in found)
    assert any(name.endswith("proj_in.down") for name in found) == (sites != "cross")
    assert any(name.startswith("conv_in") for name in found) == (sites == "all")


def test_training_brings_the_loss_down_and_leaves_the_model_alone() -> None:
    task = tiny_task(ALONE)
    job = job_of("leco", task, {"sampling_steps": 6, "trajectories": 2}, steps=50, rate=2e-2, batch=2)
    before = {name: value.clone() for name, value in task.model.unet.state_dict().items()}  # type: ignore[union-attr]
    found = train(task, job)
    assert sum(found.losses["erase"][-5:]) < 0.5 * sum(found.losses["erase"][:5])
    after = task.model.unet.state_dict()  # type: ignore[union-attr]
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(edit.up is not None and edit.up.shape[1] == 4 for edit in found.eraser.adapters.values())


def test_the_first_loss_with_a_replacement() -> None:
    task = tiny_task()
    run = run_of(job_of("leco", task, {"eta": 0.0, "sampling_steps": 6}), task)
    with torch.no_grad(), run.active():
        moment = run.draw()
        assert float(run.losses(moment)[0]) == pytest.approx(distance(run, moment, CONCEPT, ANCHOR), rel=1e-4)
