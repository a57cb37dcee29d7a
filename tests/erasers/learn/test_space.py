"""Prediction spaces agree with each other."""

from __future__ import annotations

import pytest
import torch
from lethe.erasers.learn.space import COSMOS, EDM, EPS, FLOW, RAW_V, V, denoised_from, mixed, own_space


def _draw() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, 4, 5, 5, generator=generator, dtype=torch.float64) for _ in range(4)]


SIGMA = torch.tensor([0.1, 0.7, 0.9], dtype=torch.float64)


@pytest.mark.parametrize("kind", [EPS, V, FLOW, EDM, COSMOS, RAW_V])
def test_there_and_back(kind: str) -> None:
    x, denoised, *_ = _draw()
    own = own_space(kind, x, SIGMA, denoised)
    assert torch.allclose(denoised_from(kind, x, SIGMA, own), denoised, atol=1e-12)


@pytest.mark.parametrize("kind", [EPS, V, FLOW, EDM, COSMOS, RAW_V])
def test_a_target_whose_weights_sum_to_one_is_the_same_in_every_space(kind: str) -> None:
    x, *denoised = _draw()
    weights = (2.0, -3.0, 2.0)
    there = sum(w * own_space(kind, x, SIGMA, d) for w, d in zip(weights, denoised, strict=True))
    here = sum(w * d for w, d in zip(weights, denoised, strict=True))
    assert torch.allclose(own_space(kind, x, SIGMA, torch.as_tensor(here)), torch.as_tensor(there), atol=1e-10)


def test_the_true_prediction_is_the_noise_the_velocity_or_the_difference() -> None:
    clean, noise, *_ = _draw()
    s = SIGMA.view(-1, 1, 1, 1)
    x = mixed(EPS, clean, noise, SIGMA)
    assert torch.allclose(own_space(EPS, x, SIGMA, clean), noise, atol=1e-12)
    a = 1 / (1 + s**2).sqrt()
    assert torch.allclose(own_space(V, x, SIGMA, clean), a * noise - s * a * clean, atol=1e-12)
    assert torch.allclose(own_space(RAW_V, a * x, SIGMA, clean), a * noise - s * a * clean, atol=1e-12)
    assert torch.allclose(own_space(FLOW, mixed(FLOW, clean, noise, SIGMA), SIGMA, clean), noise - clean, atol=1e-12)
    assert torch.allclose(
        own_space(COSMOS, mixed(COSMOS, clean, noise, SIGMA), SIGMA, clean), noise - clean, atol=1e-12
    )


@pytest.mark.parametrize(
    ("kind", "factor"), [(EPS, 1 / SIGMA**2), (V, (1 + SIGMA**2) / SIGMA**2), (FLOW, 1 / SIGMA**2)]
)
def test_errors_of_clean_latents_scale_as_published(kind: str, factor: torch.Tensor) -> None:
    x, one, other, _ = _draw()
    own = own_space(kind, x, SIGMA, one) - own_space(kind, x, SIGMA, other)
    ratio = own.square().sum((1, 2, 3)) / (one - other).square().sum((1, 2, 3))
    assert torch.allclose(ratio, factor, rtol=1e-10)
