"""Derived features against the formula with explicit inverses, and on the demo world."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from lethe.erasers.attacks.derived import ATTACK, Readings
from lethe.erasers.concepts import Concept, ConceptList
from lethe.erasers.demo.gallery import Gallery
from lethe.erasers.demo.world import judge
from lethe.erasers.diffusers_host import write_eraser
from lethe.erasers.errors import FamilyError
from lethe.erasers.painter import Shot
from lethe.erasers.registry import methods
from lethe.erasers.result import Eraser
from lethe.erasers.target import Target
from torch import Tensor
from toy_tower import ToyModel

BALL = Concept("ball", "box")


def rows(count: int, width: int, seed: int) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layers(width: int, seed: int) -> dict[str, Tensor]:
    return {f"site{outputs}": rows(outputs, width, seed + outputs) for outputs in (3, width, 2 * width)}


@cache
def gallery() -> Gallery:
    return Gallery(steps=8)


@cache
def eraser() -> Eraser:
    chosen = methods()["uce"]
    return chosen.fit(gallery().task(ConceptList((BALL,), lists=("demo-world",))), chosen.spec.settings({}))


class Scripted:
    """A painter whose pictures are white where a rule says so, and its judge."""

    def __init__(self, rule: Any) -> None:
        self.rule, self.shots = rule, list[Shot]()

    def paint(self, shots: Sequence[Shot]) -> Tensor:
        self.shots += shots
        return torch.tensor([float(self.rule(shot.cue.parts[0][1])) for shot in shots]).reshape(-1, 1, 1, 1)


def target(
    guarded: ToyModel, base: ToyModel, painter: Any, prompts: tuple[str, ...] = ("a ball", "big ball")
) -> Target:
    return Target(BALL, prompts, guarded, base, painter, lambda seen: seen.flatten(1)[:, 0] > 0.5)


@pytest.mark.parametrize(("count", "width"), [(1, 7), (5, 16), (40, 33)])
def test_every_row_solves_the_published_problem(count: int, width: int) -> None:
    new, old, features = layers(width, 1), layers(width, 60), rows(count, width, 9)
    left = sum(w.T @ w for w in new.values())
    assert isinstance(left, Tensor)
    ridge = 0.03 * torch.linalg.eigvalsh(left).mean() * torch.eye(width, dtype=torch.float64)
    right = sum(new[name].T @ old[name] @ features.T for name in new)
    expected = (torch.linalg.inv(left + ridge) @ right).T
    found = Readings(new, old).derive(features, 0.03)
    assert float((found - expected).norm() / expected.norm()) < 1e-10
    shaped = Readings(new, old).derive(features[None], 0.03)
    assert shaped.shape == (1, count, width)
    assert torch.equal(shaped[0], found)


def test_an_edit_that_can_be_undone_is_undone() -> None:
    old, features, edit = layers(9, 1), rows(4, 9, 2), torch.eye(9, dtype=torch.float64) + 0.2 * rows(9, 9, 3)
    found = Readings({name: w @ edit for name, w in old.items()}, old).derive(features, 1e-10)
    assert torch.allclose(found @ edit.T, features, atol=1e-6)
    assert torch.allclose(Readings(old, old).derive(features, 1e-10), features, atol=1e-6)


def test_two_models_that_differ_in_their_sites_are_refused() -> None:
    old = layers(9, 1)
    with pytest.raises(FamilyError, match="same projections"):
        Readings({name: w for name, w in old.items() if name != "site3"}, old)


def test_the_features_come_from_the_untouched_text_encoder() -> None:
    base, guarded = ToyModel(seed=1), ToyModel(seed=2)
    guarded.unet.load_state_dict(base.unet.state_dict())
    found = ATTACK.run(target(guarded, base, None), ATTACK.spec.settings({"lam_low": 1e-8, "lam_high": 1e-8}))
    with torch.no_grad():
        features = base.run(["a ball", "big ball"])[0]
    for cue, expected in zip(found.cues, features, strict=True):
        ((weight, source),) = cue.parts
        assert weight == 1
        assert isinstance(source, Tensor)
        assert source.dtype == torch.float32
        assert torch.allclose(source, expected, atol=1e-3)
    assert (found.predictions, found.checks) == (0, 0)


def test_each_prompt_keeps_the_ridge_that_shows_more() -> None:
    base = ToyModel(seed=1)
    settings = {"lam_low": 1e-8, "lam_high": 1.0, "tries": 3}
    single = [
        ATTACK.run(target(base, base, None), ATTACK.spec.settings({"lam_low": lam, "lam_high": lam}))
        for lam in (1e-8, 1.0)
    ]
    low, high = ([cue.parts[0][1] for cue in found.cues] for found in single)
    wanted = [high[0], low[1]]
    painter = Scripted(lambda source: any(torch.equal(source, want) for want in wanted))
    found = ATTACK.run(target(base, base, painter), ATTACK.spec.settings(settings))
    assert [torch.equal(cue.parts[0][1], want) for cue, want in zip(found.cues, wanted, strict=True)] == [True, True]
    assert found.checks == len(painter.shots) == 12
    wanted[1] = low[0]  # Now the low ridge is as good as the high one for the first prompt, nothing for the second.
    wanted.append(high[1])
    found = ATTACK.run(target(base, base, painter), ATTACK.spec.settings(settings))
    assert all(torch.equal(cue.parts[0][1], want) for cue, want in zip(found.cues, high, strict=True))


def test_a_models_own_operator_is_part_of_its_weights() -> None:
    erased = gallery().erased(eraser())
    assert erased.model.operator is not None
    written = write_eraser(gallery().model.unet, eraser())
    found, plain = erased.model.weights(), gallery().model.weights()
    assert found.keys() == written.keys() == plain.keys()
    for name, weight in found.items():
        assert torch.allclose(weight, written[name], atol=1e-5)
        assert not torch.allclose(weight, plain[name], atol=1e-3)


def test_it_brings_the_concept_back_in_the_demo_world() -> None:
    erased = gallery().erased(eraser())

    def shows(pictures: Tensor) -> Tensor:
        return torch.tensor(["ball" in seen for seen in judge().seen(pictures)])

    prompts = ("a red ball", "a blue ball")
    attacked = Target(BALL, prompts, erased.model, gallery().model, erased, shows, 8, 4.0)
    found = ATTACK.run(attacked, ATTACK.spec.settings({"tries": 2}))
    fresh = replace(attacked, seed=100)
    assert sum(fresh.check(attacked.plain(), 4)) <= 2
    assert sum(fresh.check(found.cues, 4)) >= 6
