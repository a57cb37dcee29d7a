"""MACE's adapters: the norm inside a region, what it trains, its times, and the operator it begins behind."""

from __future__ import annotations

import pytest
import torch
from lethe.erasers.algebra.hooks import gradients
from lethe.erasers.learn.attention import watching
from lethe.erasers.learn.attention_norm import AttentionNorm
from lethe.erasers.learn.loop import train
from lethe.erasers.learn.moment import CONCEPT, STUDENT, Ask
from lethe.erasers.recipes.mace_lora import Inside, band
from lethe.erasers.registry import method_named
from toy_trainee import gradient_names, job_of, run_of, tiny_task

_FEW = {"pictures": 2, "templates": "none"}


def test_the_loss_is_the_sum_of_the_layers_norms_inside_the_region() -> None:
    pictures, regions = torch.zeros(1, 4, 8, 8), torch.zeros(1, 8, 8)
    regions[:, :, 4:] = 0.9
    regions[:, :, :4] = 0.4
    task = tiny_task(pictures=pictures, regions=regions)
    run = run_of(job_of("mace_lora", task, _FEW, batch=1), task)
    with torch.no_grad(), run.active():
        moment = run.draw()
        (loss,) = run.losses(moment)
        with watching(run) as attention:
            run.student(moment["x"], run.of_role(Ask(STUDENT, CONCEPT), moment["x"]))
        expected = 0.0
        for own in attention.maps().values():
            side = round(own.shape[2] ** 0.5)
            right = own.unflatten(2, (side, side))[:, :, :, side // 2 :, 1:]
            expected += float(right.square().sum().sqrt())
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_an_empty_region_gives_neither_loss_nor_gradient() -> None:
    task = tiny_task()
    run = run_of(job_of("mace_lora", task, _FEW), task)
    term = AttentionNorm(per_layer=True, region=lambda run, latents: torch.zeros(len(latents.x), 8, 8))
    with torch.no_grad(), run.active():
        moment = run.draw()
        for tensor in run.trainables.tensors.values():
            tensor.requires_grad_()
        with gradients():
            loss = term.loss(run, moment, {})
            found = torch.autograd.grad(loss, list(run.trainables.tensors.values()), allow_unused=True)
    assert float(loss.detach()) == 0.0
    assert all(gradient is None or not bool(gradient.any()) for gradient in found)


def test_keys_and_values_get_gradients_but_the_last_values() -> None:
    task = tiny_task()
    run = run_of(job_of("mace_lora", task, _FEW), task)
    with torch.no_grad(), run.active():
        moment = run.draw()
        for tensor in run.trainables.tensors.values():
            tensor.requires_grad_()
        with gradients():
            found = gradient_names(run, run.losses(moment))
    last = [name for name in run.model.modules(r"attn2\.to_v$") if name.startswith("up_blocks")][-1]
    assert found == {name for name in run.trainables.tensors if not name.startswith(last)}
    assert all(".attn2.to_" in name for name in found) and len(found) > 2
    assert {len(run.trainables.tensors[name]) for name in found if name.endswith("down")} == {1}


def test_regions_come_with_the_pictures_or_from_the_model() -> None:
    regions = torch.rand(2, 8, 8)
    for given in (False, True):
        task = tiny_task(pictures=torch.zeros(2, 4, 8, 8), regions=regions) if given else tiny_task()
        run = run_of(job_of("mace_lora", task, _FEW, batch=3), task)
        (term,) = run.plan.terms
        assert isinstance(term, AttentionNorm) and isinstance(term.region, Inside)
        with torch.no_grad(), run.active():
            found = term.region(run, run.draw()["x"])
        own = {tuple(row.flatten().tolist()) for row in regions}
        assert all((tuple(row.flatten().tolist()) in own) == given for row in found)
    (term,) = job_of("mace_lora", tiny_task(), {**_FEW, "region": "everywhere"}).plan.terms
    assert isinstance(term, AttentionNorm) and term.region is None


def test_times_lie_between_200_and_400() -> None:
    times = (1 - band(20000, torch.Generator().manual_seed(0))) * 999
    inside = (times >= 200) & (times <= 400)
    assert float(inside.float().mean()) == pytest.approx(0.861, abs=0.01)
    assert float(times.mean()) == pytest.approx(300, abs=3)


def test_training_brings_attention_down_and_the_eraser_begins_with_the_refinement() -> None:
    task = tiny_task()
    job = job_of("mace_lora", task, {**_FEW, "pictures": 1}, steps=12, rate=1e-1, batch=1)
    before = {name: value.clone() for name, value in task.model.unet.state_dict().items()}  # type: ignore[union-attr]
    found = train(task, job)
    assert sum(found.losses["erase"][-3:]) < 0.7 * sum(found.losses["erase"][:3])
    after = task.model.unet.state_dict()  # type: ignore[union-attr]
    assert all(torch.equal(before[name], after[name]) for name in before)
    method = method_named("mace")
    refined = method.fit(task, method.spec.settings({})).context["clip_l"]
    begun = found.eraser.context["clip_l"]
    for name, tensor in refined.tensors().items():
        torch.testing.assert_close(begun.tensors()[name], tensor)
    assert set(found.eraser.adapters) and all(".attn2.to_" in name for name in found.eraser.adapters)
