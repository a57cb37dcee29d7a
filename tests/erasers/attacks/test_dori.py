"""The features re-trigger: where it begins, what it is fitted to, and the demo world."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from lethe.erasers.attacks.dori import ATTACK, like
from lethe.erasers.concepts import Concept, ConceptList
from lethe.erasers.demo.gallery import Gallery
from lethe.erasers.demo.world import judge
from lethe.erasers.registry import methods
from lethe.erasers.target import Found, Target
from torch import Tensor
from toy_tower import TOKENS, ToyModel

BALL = Concept("ball", "box")
PROMPTS = ("a ball", "the ball here", "ball")
SPREAD = 0.1


class Plain:
    """A model whose prediction is right where the mean token's first half is the picture; it draws what it is told."""

    in_place = False

    def __init__(self, seed: int = 0) -> None:
        self.toy = ToyModel(seed=seed)
        self.tower = self.toy.tower
        self.predictions = 0

    def drawn(self, prompts: list[str]) -> Tensor:
        """What each prompt asks for, `[n, 2, 2, 2]`."""
        return torch.stack([torch.full((2, 2, 2), float(PROMPTS.index(prompt)) - 1) for prompt in prompts])

    def sample(self, prompts: list[str], steps: int, cfg: float, seed: int) -> Tensor:
        self.predictions += 2 * steps * len(prompts)
        noise = torch.randn(len(prompts), 2, 2, 2, generator=torch.Generator().manual_seed(seed))
        return self.drawn(prompts) + SPREAD * noise

    def predict_noise(
        self, latents: Tensor, noise: Tensor, percent: float | Tensor, context: Tensor, cfg: float = 1.0
    ) -> Tensor:
        self.predictions += len(latents) * (1 if cfg == 1 else 2)
        return noise + read(context) - latents


def read(context: Tensor) -> Tensor:
    """What the model reads off features `[n, tokens, 16]`, `[n, 2, 2, 2]`."""
    return context.mean(1)[:, :8].reshape(-1, 2, 2, 2)


def run(guarded: Plain | None = None, base: Plain | None = None, seed: int = 0, **settings: object) -> Found:
    models: Any = guarded or Plain(), base or Plain()
    attacked = Target(BALL, PROMPTS, *models, None, lambda seen: seen, steps=3, seed=seed)  # type: ignore[arg-type]
    return ATTACK.run(attacked, ATTACK.spec.settings(settings))


def features(found: Found) -> Tensor:
    """The cues' features, `[n, tokens, d]`."""
    parts = [part for cue in found.cues for part in cue.parts]
    assert len(parts) == len(PROMPTS)
    assert all(weight == 1 for weight, _ in parts)
    return torch.stack([source for _, source in parts if isinstance(source, Tensor)])


def test_each_prompt_gets_the_features_of_its_own_pictures() -> None:
    found = features(run(steps=120, lr=0.05, pictures=6))
    assert found.shape == (3, TOKENS, 16)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    assert (read(found) - Plain().drawn(list(PROMPTS))).abs().max() < 3 * SPREAD


def test_several_pictures_share_what_they_show() -> None:
    """Features fitted to more pictures lie closer to what the pictures have in common."""
    one, many = (features(run(steps=120, lr=0.05, pictures=count)) for count in (1, 20))
    away = [float((read(found) - Plain().drawn(list(PROMPTS))).norm()) for found in (one, many)]
    assert away[1] < 0.6 * away[0]


def test_it_begins_at_the_prompts_features_or_at_noise_like_them() -> None:
    base = Plain(seed=1)
    with torch.no_grad():
        expected = base.toy.run(list(PROMPTS))[0]
    short = {"steps": 1, "lr": 1e-4, "batch": 1}
    found = features(run(Plain(seed=2), base, **short))
    assert 0 < (found - expected).abs().max() < 1.1e-4
    noise = features(run(Plain(seed=2), base, start="noise", **short))
    assert (noise - like(expected, torch.Generator().manual_seed(0))).abs().max() < 1.1e-4


def test_noise_has_the_features_mean_and_spread_in_each_dimension() -> None:
    given = torch.randn(3, 700, 5) * torch.tensor([1.0, 2.0, 3.0, 0.1, 9.0]) + torch.arange(5)
    found = like(given, torch.Generator().manual_seed(1))
    assert found.shape == given.shape
    assert torch.allclose(found.std((0, 1)), given.std((0, 1)), rtol=0.1)
    assert ((found.mean((0, 1)) - given.mean((0, 1))) / given.std((0, 1))).abs().max() < 0.1


def test_with_guidance_the_untouched_models_guided_predictions_are_matched() -> None:
    """The goal is what it says of the prompt, and no more what stands in its pictures."""
    base = Plain(seed=1)
    with torch.no_grad():
        expected = read(base.toy.run(list(PROMPTS))[0])
    found = read(features(run(Plain(seed=2), base, start="noise", steps=200, lr=0.05, guidance=3.0)))
    assert (found - expected).abs().max() < 0.05
    assert (found - base.drawn(list(PROMPTS))).abs().max() > 0.5


def test_a_guard_in_the_guidance_is_looked_at_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    guarded, scales = Plain(), []
    look = guarded.predict_noise
    monkeypatch.setattr(guarded, "predict_noise", lambda *given: (scales.append(given[4]), look(*given))[1])
    run(guarded, steps=2, guidance=4.0)
    assert set(scales) == {4.0}


def test_the_same_seed_finds_the_same_features() -> None:
    one, again, other = (features(run(seed=seed, steps=3, start="noise")) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(("guidance", "cost"), [(1.0, 1), (4.0, 2)])
def test_predictions_are_counted(guidance: float, cost: int) -> None:
    guarded, base = Plain(), Plain()
    found = run(guarded, base, steps=4, batch=5, pictures=2, guidance=guidance)
    assert guarded.predictions == cost * 4 * 5 * 3
    assert found.predictions == guarded.predictions + base.predictions
    assert found.checks == 0


def test_it_brings_the_concept_back_in_the_demo_world() -> None:
    gallery = Gallery(steps=8)
    uce = methods()["uce"]
    eraser = uce.fit(gallery.task(ConceptList((BALL,), lists=("demo-world",))), uce.spec.settings({}))
    erased = gallery.erased(eraser)

    def shows(pictures: Tensor) -> Tensor:
        return torch.tensor(["ball" in seen for seen in judge().seen(pictures)])

    attacked = Target(BALL, ("a red ball", "a blue ball"), erased.model, gallery.model, erased, shows, 8, 4.0)
    found = ATTACK.run(attacked, ATTACK.spec.settings({"steps": 10, "pictures": 2, "batch": 3}))
    fresh = replace(attacked, seed=100)
    assert sum(fresh.check(attacked.plain(), 4)) <= 2
    assert sum(fresh.check(found.cues, 4)) >= 6
