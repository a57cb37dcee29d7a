"""NAG against its equations, place by place."""

from __future__ import annotations

import torch
from lethe.erasers.guards.nag import Normalised
from lethe.erasers.window import Window


def pushed(said: torch.Tensor, unsaid: torch.Tensor, scale: float, most: float, share: float) -> torch.Tensor:
    part = Normalised(torch.zeros(1, said.shape[-1]), Window(), scale, most, share)
    return part.mix(said, unsaid)


def test_every_place_follows_the_equations_above_and_below_the_bound() -> None:
    generator = torch.Generator().manual_seed(0)
    said, unsaid = (torch.randn(2, 5, 8, generator=generator) for _ in range(2))
    # The first places lie close together and stay below the bound.
    unsaid[:, :2] = said[:, :2] + 0.01
    found, bounded = pushed(said, unsaid, 5.0, 2.5, 0.5), 0
    for row in range(2):
        for place in range(5):
            z, other = said[row, place], unsaid[row, place]
            far = z + 5 * (z - other)
            ratio = far.abs().sum() / z.abs().sum()
            bounded += bool(ratio > 2.5)
            expected = 0.5 * (min(float(ratio), 2.5) / ratio * far) + 0.5 * z
            assert torch.allclose(found[row, place], expected, atol=1e-5)
    assert 0 < bounded < 10


def test_where_both_say_the_same_nothing_changes() -> None:
    said = torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(pushed(said, said, 5.0, 2.5, 0.7), said, atol=1e-6)
    silent = torch.zeros(1, 3, 4)
    assert torch.equal(pushed(silent, silent, 5.0, 2.5, 0.7), silent)


def test_half_precision_does_not_overflow() -> None:
    said = torch.full((1, 2, 2048), 50.0, dtype=torch.float16)
    found = pushed(said, -said, 20.0, 10.0, 1.0)
    assert found.dtype == torch.float16 and torch.allclose(found, said * 10)
