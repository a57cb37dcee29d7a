"""Attention maps made again from queries and keys: what they are, whose they are, and where gradients go."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from lethe.erasers.algebra.hooks import gradients, hooked
from lethe.erasers.errors import FamilyError
from lethe.erasers.learn import attention as under_test
from lethe.erasers.learn.attention import grid, probabilities, watching
from lethe.erasers.learn.moment import CONCEPT, STUDENT, TEACHER, Ask
from lethe.erasers.learn.region import at_size, concept_heat
from lethe.erasers.learn.run import Run
from torch import Tensor
from toy_trainee import job_of, run_of, tiny_task


def _esd() -> tuple[Run, Any]:
    task = tiny_task()
    return run_of(job_of("esd", task, {"sampling_steps": 4, "sites": "cross-kv"}, batch=3), task), task.loaded()


def test_maps_are_those_that_the_model_computes_with_what_is_trained_in_them() -> None:
    run, model = _esd()
    truth: dict[str, Tensor] = {}

    def record(name: str, module: Any) -> None:
        scores = module.get_attention_scores

        def own(*given: Any) -> Tensor:
            found = scores(*given)
            truth[name] = found.unflatten(0, (-1, module.heads))
            return found

        module.set_processor(AttnProcessor())
        module.get_attention_scores = own

    with torch.no_grad(), run.active():
        moment = run.draw()
        features = run.of_role(Ask(STUDENT, CONCEPT), moment["x"])
        with watching(run):
            pass
        for name, module in model.unet.named_modules():
            if name.endswith("attn2"):
                record(name, module)
        with watching(run) as untrained:
            run.teacher(moment["x"], features)
        for name, tensor in run.trainables.tensors.items():
            if name.endswith("to_k"):
                tensor.normal_(std=0.05, generator=torch.Generator().manual_seed(1))
        with watching(run) as attention:
            run.student(moment["x"], features)
        maps = attention.maps()
        assert set(maps) == set(truth) and len(maps) > 1
        for name, own in maps.items():
            assert own.shape == (3, 2, own.shape[2], 77)
            torch.testing.assert_close(own, truth[name], rtol=1e-4, atol=1e-5)
            assert float((own - untrained.maps()[name]).abs().max()) > 1e-3


def test_gradients_reach_keys_and_no_values() -> None:
    run, _ = _esd()
    with torch.no_grad(), run.active():
        moment = run.draw()
        for tensor in run.trainables.tensors.values():
            tensor.requires_grad_()
        last = list(run.model.modules(r"attn2\.to_k$"))[-1]
        with gradients():
            with watching(run) as attention:
                run.student(moment["x"], run.of_role(Ask(STUDENT, CONCEPT), moment["x"]))
            loss = attention.maps()[last.removesuffix(".to_k")][..., 1].sum()
            own = [run.trainables.tensors[last], run.trainables.tensors[last.replace("to_k", "to_v")]]
            to_key, to_value = torch.autograd.grad(loss, own, allow_unused=True)
        assert to_key is not None and bool(to_key.any())
        assert to_value is None


def test_maps_work_under_checkpoints() -> None:
    found = []
    for checkpoint in (False, True):
        run, _ = _esd()
        with torch.no_grad(), run.active(checkpoint):
            moment = run.draw()
            for tensor in run.trainables.tensors.values():
                tensor.requires_grad_()
            with gradients():
                with watching(run) as attention:
                    run.student(moment["x"], run.of_role(Ask(STUDENT, CONCEPT), moment["x"]))
                loss = torch.stack([maps[..., 1].sum() for maps in attention.maps().values()]).sum()
                names = [name for name in run.trainables.tensors if name.endswith("to_k")]
                found.append(torch.autograd.grad(loss, [run.trainables.tensors[name] for name in names]))
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(plain, again)


def test_many_rows_of_the_teacher_go_through_in_parts_and_come_back_together() -> None:
    task = tiny_task()
    run = run_of(job_of("esd", task, {"sampling_steps": 4}, batch=19), task)
    with torch.no_grad(), run.active():
        latents = run.draw()["x"]
        with watching(run) as attention:
            run.teacher(latents, run.of_role(Ask(TEACHER, CONCEPT), latents))
        assert {len(maps) for maps in attention.maps().values()} == {19}


@pytest.mark.parametrize("heads", [1, 2, 3, 6, 12])
def test_the_number_of_heads_is_told_by_what_comes_out(heads: int) -> None:
    generator = torch.Generator().manual_seed(heads)
    q, k, v = (torch.randn(1, n, 12, generator=generator) for n in (9, 5, 5))
    split = v.unflatten(-1, (heads, -1)).transpose(1, 2)
    out = (probabilities(q, k, heads) @ split).transpose(1, 2).flatten(2)
    assert under_test._heads_of(q, k, v, out) == heads
    assert under_test._heads_of(*(part.bfloat16() for part in (q, k, v, out))) == heads
    with pytest.raises(FamilyError):
        under_test._heads_of(q, k, v, out + torch.randn(out.shape, generator=generator))


def test_probabilities_are_a_softmax_over_tokens() -> None:
    q, k = torch.randn(2, 3, 8), torch.randn(2, 5, 8)
    found = probabilities(q, k, 4)
    assert found.shape == (2, 4, 3, 5)
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 4, 3))
    scores = torch.stack([k[1, t, 2:4] @ q[1, 2, 2:4] / math.sqrt(2) for t in range(5)])
    torch.testing.assert_close(found[1, 1, 2], scores.softmax(0))


def test_the_heat_of_a_concept_is_the_mean_attention_to_its_name() -> None:
    run, _ = _esd()
    task = run.task
    with torch.no_grad(), run.active():
        latents = run.draw()["x"]
        latents = type(latents)(latents.x, latents.sigma, tuple({**own, "name": "ball"} for own in latents.scenes))
        heat = concept_heat(run, latents)
        with watching(run) as attention:
            run.teacher(latents, run.features(["ball"] * 3))
        maps = attention.maps()
    assert task.encode(["ball"])[0].last == 1
    # Latents of 8 x 8 call for maps of 2 x 2; the nearest that there are have 4 x 4.
    assert {own.shape[2] for own in maps.values()} == {16, 64}
    expected = torch.stack([own.mean(1)[:, :, 1] for own in maps.values() if own.shape[2] == 16]).mean(0)
    torch.testing.assert_close(heat.flatten(1), expected)


def test_regions_are_resized_to_the_nearest_pixel() -> None:
    region = torch.tensor([[[1.0, 0.0], [0.6, 0.4]]])
    assert at_size(region, 4, 2, 2).tolist() == [[1, 0, 1, 0]]
    wide = at_size(region, 16, 16, 16).view(4, 4)
    assert wide.tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0]]
    assert grid(32, 16, 8) == (8, 4)


def test_nothing_stays_hooked() -> None:
    run, model = _esd()
    with torch.no_grad(), run.active():
        before = sum(len(module._forward_hooks) for module in model.unet.modules())
        with watching(run), hooked(()):
            pass
        assert sum(len(module._forward_hooks) for module in model.unet.modules()) == before
