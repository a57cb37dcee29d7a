"""SSD: the rule on plain tensors, and what it measures on a tiny model."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from lethe.erasers.algebra.hooks import edit_gradients
from lethe.erasers.errors import SettingError
from lethe.erasers.learn.moment import Features, Latents
from lethe.erasers.learn.pictures import Pictures
from lethe.erasers.learn.run import Run
from lethe.erasers.learn.scenes import concept_scenes, kept_scenes
from lethe.erasers.methods.ssd import METHOD, damped, damping, fisher
from torch import Tensor
from toy_trainee import job_of, run_of, tiny_task


def _settings(**given: Any) -> dict[str, Any]:
    short = {"pictures": 2, "draws": 2, "batch": 2, "steps": 3, "templates": "none", "sites": "cross-kv"}
    return METHOD.spec.settings({**short, **given})


def test_the_rule() -> None:
    every = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 2.0])
    forget = torch.tensor([5.0, 10.0, 20.0, 3.0, 0.0, 100.0])
    assert damping(forget, every, 10, 1).tolist() == pytest.approx([1, 1, 0.05, 0, 1, 0.02])
    assert damping(forget, every, 10, 0.5).tolist() == pytest.approx([1, 1, 0.025, 0, 1, 0.01])
    assert damping(forget, every, 0.1, 8).tolist() == pytest.approx([1, 0.8, 0.4, 0, 1, 0.16])


@pytest.mark.parametrize("alpha", [1.0, 10.0])
def test_what_matters_alike_is_not_touched(alpha: float) -> None:
    same = torch.rand(30, generator=torch.Generator().manual_seed(0))
    assert torch.equal(damping(same, same, alpha, 0.0), torch.ones(30))


@pytest.mark.parametrize("chosen", [1, 6])
def test_an_edit_multiplies_the_weight_in_either_form(chosen: int) -> None:
    weight = torch.randn(3, 2, 1, 2, generator=torch.Generator().manual_seed(0))
    factor = torch.ones(3, 4)
    factor.view(-1)[:chosen] = 0.25
    edit = damped(weight, factor)
    assert (edit.indices is not None) == (chosen == 1)
    assert torch.allclose(weight + edit.delta(tuple(weight.shape)), weight * factor.view_as(weight))


def test_information_is_the_mean_of_squared_gradients_of_batches() -> None:
    task, settings = tiny_task(), _settings(seed=3)
    scenes = concept_scenes(task, "none")
    found = fisher(task, scenes, settings)
    model = task.loaded()
    # The same draws once more, with gradients by another way.
    run = run_of(job_of("esd", task), task)
    source = Pictures(scenes, count=2, steps=3, cfg=6.0)
    modules = model.modules(r"\.attn2\.to_[kv]$")
    zeros = {name: torch.zeros(module.weight.shape) for name, module in modules.items()}  # type: ignore[arg-type]
    squares = {name: torch.zeros_like(zero) for name, zero in zeros.items()}
    with torch.no_grad(), run.active():
        for _ in range(2):
            latents = source.draw(run, 2)["x"]
            features = run.features(["ball"] * 2)
            error = partial(_error, run, latents, features)
            own = edit_gradients(modules, zeros, [error])
            for name in squares:
                squares[name] += own[name].square() / 2
    assert found.keys() == squares.keys()
    for name, square in squares.items():
        assert torch.allclose(found[name], square, rtol=1e-3, atol=1e-6 * float(square.max()))


def _error(run: Run, latents: Latents, features: Features) -> Tensor:
    assert latents.noise is not None
    return (run.student(latents, features) - latents.noise).square().mean()


def test_what_only_the_concept_needs_shrinks_most() -> None:
    task = tiny_task()
    eraser = METHOD.fit(task, _settings(alpha=2.0))
    forget, every = (fisher(task, scenes, _settings()) for scenes in (concept_scenes(task, "none"), kept_scenes(task)))
    changed = 0
    for name, edit in eraser.adapters.items():
        weight, layer = task.loaded().parameter(name), name.removesuffix(".weight")
        after = weight + edit.delta(tuple(weight.shape))
        expected = torch.where(forget[layer] > 2 * every[layer], weight * every[layer] / forget[layer], weight)
        assert torch.allclose(after, expected, atol=1e-6)
        assert bool((after.abs() <= weight.abs()).all())
        changed += int((after != weight).sum())
    assert changed


def test_a_concept_that_is_like_everything_else_is_refused() -> None:
    task = tiny_task()
    alike = replace(task, encode=lambda prompts: [task.encode(["ball"])[0] for _ in prompts])
    with pytest.raises(SettingError, match="matters 2 times"):
        METHOD.fit(alike, _settings(alpha=2.0))
