"""RealEra-like LoRA: its losses before the first step, and that it learns the neighbourhood."""

from __future__ import annotations

import pytest
import torch
from lethe.erasers.algebra.hooks import gradients
from lethe.erasers.errors import SettingError
from lethe.erasers.learn.loop import train
from lethe.erasers.learn.moment import ANCHOR, CONCEPT
from lethe.erasers.learn.sphere import FAR, NEAR
from toy_trainee import distance, gradient_names, job_of, run_of, tiny_task

QUICK = {"sampling_steps": 4, "trajectories": 2}


def test_the_first_losses_are_distances_to_the_anchor_and_nothing_for_what_is_held() -> None:
    task = tiny_task()
    run = run_of(job_of("realera_lora", task, QUICK), task)
    with torch.no_grad(), run.active():
        moment = run.draw()
        run.make(moment)
        own, near, far = (float(loss) for loss in run.losses(moment))
        assert own == pytest.approx(distance(run, moment, CONCEPT, ANCHOR), rel=1e-4)
        assert near == pytest.approx(distance(run, moment, NEAR, ANCHOR), rel=1e-4)
        assert far == pytest.approx(0, abs=1e-12)
        # The neighbourhood lies around the concept, and what is held lies further away.
        assert 0 < distance(run, moment, NEAR, CONCEPT) < distance(run, moment, FAR, CONCEPT)
        assert not moment["x"].x.requires_grad


@pytest.mark.parametrize(
    ("sites", "parts"), [("blocks", ("attentions.",)), ("cross-kv", (".attn2.to_k", ".attn2.to_v"))]
)
def test_exactly_the_chosen_layers_get_gradients(sites: str, parts: tuple[str, ...]) -> None:
    task = tiny_task()
    run = run_of(job_of("realera_lora", task, {**QUICK, "sites": sites}), task)
    with torch.no_grad(), run.active():
        moment = run.draw()
        run.make(moment)
        for tensor in run.trainables.tensors.values():
            tensor.requires_grad_()
        with gradients():
            found = gradient_names(run, run.losses(moment))
    layers = (torch.nn.Linear, torch.nn.Conv2d)
    linear = (name for name, module in task.loaded().modules("").items() if isinstance(module, layers))
    expected = {name for name in linear if any(part in name for part in parts)}
    assert found == {f"{name}.{end}" for name in expected for end in ("down", "up")} != set()


def test_training_brings_concept_and_neighbours_to_the_anchor_and_leaves_the_model_alone() -> None:
    task = tiny_task()
    job = job_of("realera_lora", task, QUICK, steps=20, rate=2e-2)
    before = {name: value.clone() for name, value in task.model.unet.state_dict().items()}  # type: ignore[union-attr]
    found = train(task, job)
    assert sum(found.losses["erase"][-5:]) < 0.6 * sum(found.losses["erase"][:5])
    after = task.model.unet.state_dict()  # type: ignore[union-attr]
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert found.eraser.adapters and all(edit.up is not None for edit in found.eraser.adapters.values())


def test_a_shell_to_hold_that_ends_inside_the_neighbourhood_is_refused() -> None:
    with pytest.raises(SettingError, match="before neighbours do"):
        job_of("realera_lora", tiny_task(), {"near": 0.5, "far": 0.4})
