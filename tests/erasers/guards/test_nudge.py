"""Guards that move latents by where words look: their losses, steps and words, against numbers computed otherwise."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from lethe.erasers.concepts import Concept, ConceptList
from lethe.erasers.guards import a_star, attend_excite
from lethe.erasers.guards.a_star import Segregation
from lethe.erasers.guards.attend_excite import exciting, peaks, suppressing
from lethe.erasers.nudge import Nudge
from torch import Tensor
from toy_tower import ToyModel

NAMED = torch.tensor([False, True, True, False])


def maps(seed: int = 0, size: tuple[int, int] = (5, 4)) -> Tensor:
    found = torch.rand(4, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return found / found.sum(0) * 0.05


def peak(found: Tensor, token: int) -> float:
    """Place by place: a softmax over the tokens, and a Gaussian over neighbours, the edge repeated."""
    _, height, width = found.shape
    sharp = [[[0.0] * width for _ in range(height)] for _ in found]
    for i in range(height):
        for j in range(width):
            powers = [math.exp(100 * float(one[i, j])) for one in found]
            for t, power in enumerate(powers):
                sharp[t][i][j] = power / sum(powers)
    weights = {(a, b): math.exp(-(a * a + b * b) / (2 * 0.5**2)) for a in (-1, 0, 1) for b in (-1, 0, 1)}
    most = 0.0
    for i in range(height):
        for j in range(width):
            near = {
                (a, b): sharp[token][min(max(i + a, 0), height - 1)][min(max(j + b, 0), width - 1)] for a, b in weights
            }
            most = max(most, sum(weights[at] * near[at] for at in near) / sum(weights.values()))
    return most


def test_peaks_are_sharpened_and_smoothed_shares() -> None:
    found = maps()
    assert torch.allclose(peaks(found), torch.tensor([peak(found, t) for t in range(4)], dtype=torch.float64))


def test_suppressing_adds_the_concepts_peaks_and_exciting_takes_the_least() -> None:
    found = maps(3)
    first, second = peak(found, 1), peak(found, 2)
    assert float(suppressing(found, NAMED, {})) == pytest.approx(first + second)
    assert float(exciting(found, NAMED, {})) == pytest.approx(1 - min(first, second))


def shared(one: Tensor, other: Tensor) -> float:
    """sum min / sum both, place by place."""
    pairs = list(zip(one.flatten().tolist(), other.flatten().tolist(), strict=True))
    return sum(min(pair) for pair in pairs) / sum(a + b for a, b in pairs)


def test_segregation_is_of_every_pair_of_a_named_and_another_token() -> None:
    found, memory = maps(), dict[str, Tensor]()
    loss = Segregation(2.0, 3.0)(found, NAMED, memory)
    pairs = [(1, 0), (1, 3), (2, 0), (2, 3)]
    assert float(loss) == pytest.approx(sum(shared(found[m], found[n]) for m, n in pairs))
    alone = Segregation(2.0, 3.0)(found, torch.ones(4, dtype=torch.bool), {})
    assert float(alone) == 0, "a prompt of the name alone has no pairs"


def test_retention_is_of_where_tokens_looked_at_the_step_before() -> None:
    before, found, memory = maps(1), maps(2), dict[str, Tensor]()
    loss = Segregation(2.0, 3.0)
    loss(before, NAMED, memory)
    total = float(loss(found, NAMED, memory)) - float(Segregation(2.0, 3.0)(found, NAMED, {}))
    binary = torch.stack([(one > one.max() / 2).double() for one in before])
    left = [1 - shared(one, other) for one, other in zip(found, binary, strict=True)]
    assert total == pytest.approx(2 * (left[0] + left[3]) - 3 * (left[1] + left[2]))
    assert torch.equal(memory["before"], torch.stack([(one > one.max() / 2).double() for one in found]))


def nudge(kind: str = "eps", **settings: Any) -> Nudge:
    model: Any = ToyModel()
    model.prediction = lambda: kind
    task = model.task(ConceptList().with_concept(Concept("red-ball", "box", ("orb",))))
    plan = attend_excite.GUARD.plan(task, attend_excite.GUARD.spec.settings(settings))
    assert plan.nudge is not None and plan.reader is plan.nudge
    return plan.nudge


@pytest.mark.parametrize("percent", [0.0, 0.3, 1.0])
def test_a_step_is_the_published_one_on_latents_of_unit_variance(percent: float) -> None:
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sigma = torch.tensor([0.5, 7.0], dtype=torch.float64)
    scale = (1 + sigma**2).sqrt()[:, None, None, None]
    z = (x / scale).requires_grad_()
    (by_z,) = torch.autograd.grad((z * scale).sin().sum(), z)
    alpha = 20 * math.sqrt(1 + percent * (0.5 - 1))
    wanted = (z.detach() - alpha * by_z) * scale
    assert torch.allclose(nudge().moved(x, sigma, x.cos(), percent), wanted)
    assert torch.allclose(nudge("flow", alpha=3.0).moved(x, sigma, x.cos(), 0.0), x - 3 * x.cos())


def test_a_prompts_own_tokens_are_read_and_those_of_names_marked() -> None:
    part = nudge()
    tower = part.tower
    one, two, empty = (list(tower.ids(text)) for text in ("red ball tree", "lamp orb", ""))
    length = len(empty)
    found = part.read([one, empty, two])
    assert found is not None and found.tokens == 3 * length
    assert found.places == (1, 2, 3, 2 * length + 1, 2 * length + 2)
    assert found.named == (True, True, False, False, True)
    assert part.read([list(tower.ids("red tree ball"))]) is None and part.read([empty]) is None


def test_windows_modes_and_nothing() -> None:
    model: Any = ToyModel()
    model.prediction = lambda: "eps"
    task = model.task(ConceptList().with_concept(Concept("ball")))
    for guard in (attend_excite.GUARD, a_star.GUARD):
        assert guard.plan(task, guard.spec.settings({"alpha": 0.0})).nudge is None
        found = guard.plan(task, guard.spec.settings({"end": 0.25, "rounds": 4})).nudge
        assert found is not None and (found.window.start, found.window.end, found.rounds) == (0.0, 0.25, 4)
    excite = attend_excite.GUARD.plan(task, attend_excite.GUARD.spec.settings({"mode": "excite"})).nudge
    assert excite is not None and excite.loss is exciting and nudge().loss is suppressing
    star = a_star.GUARD.plan(task, a_star.GUARD.spec.settings({"retain": 0.5, "lose": 2.0})).nudge
    assert star is not None and star.loss == Segregation(0.5, 2.0)
