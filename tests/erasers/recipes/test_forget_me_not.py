"""Forget-Me-Not: its norm, what it trains, whose pictures it takes, and that attention falls."""

from __future__ import annotations

import math

import pytest
import torch
from lethe.erasers.algebra.hooks import gradients
from lethe.erasers.learn.attention import watching
from lethe.erasers.learn.loop import train
from lethe.erasers.learn.moment import CONCEPT, STUDENT, Ask
from toy_trainee import gradient_names, job_of, run_of, tiny_task

_FEW = {"pictures": 2, "sites": "cross", "wording": "name alone"}
_TOKENS = {"none": [1], "first": [1, 2], "all": list(range(1, 77))}


@pytest.mark.parametrize("ends", ["none", "first", "all"])
def test_the_loss_is_one_norm_over_layers_heads_pixels_and_tokens(ends: str) -> None:
    task = tiny_task()
    run = run_of(job_of("forget_me_not", task, {**_FEW, "end_tokens": ends}, batch=2), task)
    with torch.no_grad(), run.active():
        moment = run.draw()
        (loss,) = run.losses(moment)
        with watching(run) as attention:
            run.student(moment["x"], run.of_role(Ask(STUDENT, CONCEPT), moment["x"]))
        maps = attention.maps().values()
        rows = [sum(float(own[i, :, :, _TOKENS[ends]].square().sum()) for own in maps) for i in range(2)]
    assert float(loss) == pytest.approx(sum(math.sqrt(row) for row in rows) / 2, rel=1e-5)
    assert not moment["x"].x.requires_grad


@pytest.mark.parametrize("sites", ["cross", "all"])
def test_only_what_leads_to_attention_gets_gradients(sites: str) -> None:
    task = tiny_task()
    run = run_of(job_of("forget_me_not", task, {**_FEW, "sites": sites}), task)
    with torch.no_grad(), run.active():
        moment = run.draw()
        for tensor in run.trainables.tensors.values():
            tensor.requires_grad_()
        with gradients():
            found = gradient_names(run, run.losses(moment))
    layers = [name.removesuffix(".to_k") for name in run.model.modules(r"attn2\.to_k$")]
    # Mid blocks are registered last and run before the up blocks.
    last = [name for name in layers if name.startswith("up_blocks")][-1]
    assert {f"{name}.to_k" for name in layers} | {f"{name}.to_q" for name in layers} <= found
    # Nothing looks at what the last cross-attention gives.
    assert f"{last}.to_v" not in found and f"{last}.to_out.0" not in found
    assert f"{layers[0]}.to_v" in found
    assert ("conv_in" in found) == (sites == "all") and "conv_out" not in found


def test_the_users_pictures_are_used_where_there_are_any() -> None:
    pictures = torch.arange(2.0)[:, None, None, None].expand(2, 4, 8, 8)
    task = tiny_task(pictures=pictures)
    run = run_of(job_of("forget_me_not", task, _FEW, batch=6), task)
    with torch.no_grad(), run.active():
        clean = run.draw()["x"].clean
    assert clean is not None and set(clean.flatten().tolist()) == {0.0, 1.0}
    assert run.predictions == 0


def test_the_pictures_prompt_follows_the_wording() -> None:
    task = tiny_task()
    for wording, prompt in (("object", "a photo of ball"), ("style", "a photo in the style of ball")):
        (source,) = job_of("forget_me_not", task, {"wording": wording}).plan.sources
        assert [scene[CONCEPT] for scene in source.scenes] == [prompt]  # type: ignore[attr-defined]


def test_attention_to_the_concept_falls_and_the_model_is_left_alone() -> None:
    task = tiny_task()
    job = job_of("forget_me_not", task, {**_FEW, "end_tokens": "first"}, steps=12, rate=4e-2, batch=1)
    before = {name: value.clone() for name, value in task.model.unet.state_dict().items()}  # type: ignore[union-attr]
    found = train(task, job)
    assert sum(found.losses["erase"][-3:]) < 0.5 * sum(found.losses["erase"][:3])
    after = task.model.unet.state_dict()  # type: ignore[union-attr]
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert set(found.eraser.adapters) and all(".attn2." in name for name in found.eraser.adapters)
