"""SLD against its equations, written out element by element."""

from __future__ import annotations

import pytest
import torch
from lethe.erasers.guard import Look
from lethe.erasers.guards.sld import SafetyGuidance
from torch import Tensor

W = 7.5
SAFETY = "an image showing a ball"


def random(seed: int) -> Tensor:
    return torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def look(seed: int, sigma: float, percent: float, memory: dict[str, Tensor]) -> tuple[Look, Tensor, Tensor, Tensor]:
    """A look, and the noise it sees for prompt, negative and safety text."""
    x, p, u, s = (random(seed + i) for i in range(4))
    p, s = u + 0.02 * p, u + 0.02 * s
    level = torch.full((2,), sigma, dtype=torch.float64)
    seen = Look(x, level, percent, x - sigma * p, x - sigma * u, {SAFETY: x - sigma * s}, memory)
    return seen, p, u, s


def reference(p: float, u: float, s: float, scale: float, limit: float) -> float:
    """The share of the push that one element gets, times the push."""
    share = min(1.0, scale * abs(p - s)) if p - s < limit else 0.0
    return share * (s - u)


@pytest.mark.parametrize(
    ("scale", "limit", "s_m", "beta"), [(20, 0.0, 0.0, 0.0), (1000, 0.01, 0.3, 0.4), (5, 1, 0.5, 0.7)]
)
def test_three_steps_are_the_papers(scale: float, limit: float, s_m: float, beta: float) -> None:
    mix, memory = SafetyGuidance(SAFETY, 0.3, scale, limit, s_m, beta), {}
    momentum = torch.zeros(2, 3, 4, 5, dtype=torch.float64)
    for step, (sigma, percent) in enumerate([(9.0, 0.0), (3.0, 0.3), (0.5, 0.7)]):
        seen, p, u, s = look(10 * step, sigma, percent, memory)
        said, unsaid = mix(seen)
        elements = zip(p.flatten().tolist(), u.flatten().tolist(), s.flatten().tolist(), strict=True)
        gamma = torch.tensor([reference(*own, scale, limit) for own in elements], dtype=torch.float64).view_as(p)
        gamma = gamma + s_m * momentum
        momentum = beta * momentum + (1 - beta) * gamma
        guided = u + W * (p - u - (gamma if percent >= 0.3 else 0))
        mixed = unsaid + W * (said - unsaid)
        assert torch.allclose((seen.x - mixed) / sigma, guided, atol=1e-9)
        assert torch.equal(unsaid, seen.unsaid)


def test_a_prompt_that_leans_away_is_left_alone() -> None:
    seen, p, _, s = look(0, 2.0, 0.5, {})
    said, _ = SafetyGuidance(SAFETY, 0.0, 5000.0, 0.0, 0.0, 0.0)(seen)
    away = p - s >= 0
    assert torch.equal(said[away], seen.said[away])
    assert bool(away.any()) and not torch.allclose(said[~away], seen.said[~away], atol=1e-6)
