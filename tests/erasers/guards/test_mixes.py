"""Perp-Neg and the timed negative against their equations; windows."""

from __future__ import annotations

import pytest
import torch
from lethe.erasers.errors import SettingError
from lethe.erasers.guard import Look
from lethe.erasers.guards.negative import TimedNegative
from lethe.erasers.guards.perp_neg import Perpendicular
from lethe.erasers.window import Window
from torch import Tensor

W, SIGMA = 5.0, 3.0


def noises(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(2, 2, 3, 3, generator=generator, dtype=torch.float64) for _ in range(count)]


def look(p: Tensor, u: Tensor, **seen: Tensor) -> Look:
    x = torch.ones_like(p)
    level = torch.full((2,), SIGMA, dtype=torch.float64)
    return Look(x, level, 0.5, x - SIGMA * p, x - SIGMA * u, {k: x - SIGMA * v for k, v in seen.items()}, {})


def guided(pair: tuple[Tensor, Tensor]) -> Tensor:
    """The noise that guidance makes of denoised latents."""
    said, unsaid = pair
    return (1 - (unsaid + W * (said - unsaid))) / SIGMA


def test_perp_neg_in_noise_is_perp_neg_in_denoised_latents() -> None:
    p, u, one, other = noises(4)
    found = guided(Perpendicular(("one", "other"), 1.5)(look(p, u, one=one, other=other)))
    for picture in range(2):
        positive = (p - u)[picture].flatten()
        away = torch.zeros_like(positive)
        for negative in (one, other):
            n = (negative - u)[picture].flatten()
            away += n - (n @ positive) / (positive @ positive) * positive
        wanted = u[picture].flatten() + W * (positive - 1.5 * away)
        assert torch.allclose(found[picture].flatten(), wanted, atol=1e-9)


def test_a_negative_along_the_prompt_is_ignored() -> None:
    p, u = noises(2)
    mix = Perpendicular(("one",), 1.5)
    assert torch.allclose(guided(mix(look(p, u, one=u + 3 * (p - u)))), u + W * (p - u), atol=1e-9)
    said, _ = mix(look(u, u, one=p))
    assert bool(said.isfinite().all())


def test_a_timed_negative_takes_the_negatives_place_or_half_of_it() -> None:
    p, u, n = noises(3)
    seen = look(p, u, n=n)
    assert torch.allclose(guided(TimedNegative("n", beside=False)(seen)), n + W * (p - n), atol=1e-9)
    half = (u + n) / 2
    assert torch.allclose(guided(TimedNegative("n", beside=True)(seen)), half + W * (p - half), atol=1e-9)


def test_windows_hold_from_their_start_and_end_before_their_end() -> None:
    window = Window(0.25, 0.5)
    assert [window.holds(p) for p in (0.0, 0.25, 0.49, 0.5, 1.0)] == [False, True, True, False, False]
    assert Window().holds(1.0)
    for start, end in ((0.5, 0.5), (0.6, 0.2), (-0.1, 1.0), (0.0, 1.1)):
        with pytest.raises(SettingError, match="never"):
            Window(start, end)
