"""Distances of sets of embeddings, against formulas by hand and scipy's matrix root."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import scipy.linalg
import torch
from lethe.erasers.errors import NumericsError, SettingError
from lethe.erasers.measure.distances import frechet, kernel
from torch import Tensor


def _set(count: int, width: int, seed: int, shift: float = 0.0, scale: float = 1.0) -> Tensor:
    rows = torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return shift + scale * rows


def _mmd(x: Tensor, y: Tensor) -> float:
    """Unbiased MMD^2 in loops."""

    def k(a: Tensor, b: Tensor) -> float:
        return (float(a @ b) / len(a) + 1) ** 3

    within = [sum(k(s[i], s[j]) for i in range(len(s)) for j in range(len(s)) if i != j) for s in (x, y)]
    pairs = [len(s) * (len(s) - 1) for s in (x, y)]
    across = sum(k(a, b) for a in x for b in y) / (len(x) * len(y))
    return within[0] / pairs[0] + within[1] / pairs[1] - 2 * across


@pytest.mark.parametrize(("n", "m", "width"), [(50, 50, 1), (231, 77, 7), (40, 60, 16)])
def test_frechet_equals_scipys_matrix_root(n: int, m: int, width: int) -> None:
    x, y = _set(n, width, 1), _set(m, width, 2, 0.5, 2.0)
    a, b = (np.atleast_2d(np.cov(s.numpy(), rowvar=False)) for s in (x, y))
    root = scipy.linalg.sqrtm(a @ b).real
    expected = float((x.mean(0) - y.mean(0)).square().sum()) + np.trace(a + b - 2 * root)
    assert frechet(x, y) == pytest.approx(expected, rel=1e-8)
    assert frechet(y, x) == pytest.approx(expected, rel=1e-8)


def test_frechet_of_a_shift_and_a_stretch() -> None:
    """A shift by 3 in each of 4 dimensions is 36; a stretch from deviation s to 2 s is s^2 per dimension."""
    x = _set(500, 4, 1)
    assert frechet(x, x + 3) == pytest.approx(36)
    centred = x - x.mean(0)
    variance = float(centred.square().sum()) / 499
    assert frechet(centred, 2 * centred) == pytest.approx(variance)


def test_equal_sets_have_no_distance_even_with_fewer_rows_than_dimensions() -> None:
    x = _set(5, 64, 1).float()
    assert 0 <= frechet(x, x) < 1e-4
    assert frechet(x, x + 1) == pytest.approx(64, rel=1e-5)


def test_kernel_of_two_pairs_by_hand() -> None:
    """d = 1, {0, 1} and {1, 2}: k = 1 within, 27 within, 1, 1, 8, 27 across."""
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [2.0]])
    found = kernel(x, y)
    assert found.value == pytest.approx(1 + 27 - 2 * (1 + 1 + 8 + 27) / 4)
    assert math.isnan(found.low) and math.isnan(found.high) and found.count == 2


def test_kernel_is_the_mean_over_subsets() -> None:
    x, y = _set(40, 3, 1), _set(30, 3, 2, 0.4)
    expected = _mmd(x, y)
    found = kernel(x, y)
    assert found.low < expected < found.high
    assert found.value == pytest.approx(expected, abs=(found.high - found.low) / 2 / 1.96 * 0.4)
    assert found.count == 30


def test_kernel_of_the_same_world_is_about_zero_and_the_mean_is_unbiased() -> None:
    found = [kernel(_set(20, 5, seed), _set(20, 5, 1000 + seed)) for seed in range(40)]
    values = torch.tensor([one.value for one in found])
    assert abs(float(values.mean())) < 3 * float(values.std()) / math.sqrt(40)
    assert float((values < 0).float().mean()) > 0.2
    far = kernel(_set(20, 5, 1), _set(20, 5, 2, 2.0))
    assert far.low > float(values.max())


def test_seeds_choose_the_subsets_and_leave_the_global_generator_alone() -> None:
    x, y = _set(40, 3, 1), _set(40, 3, 2)
    state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kernel(x, y, seed=1) == kernel(x, y, seed=1) != kernel(x, y, seed=2)
        frechet(x, y)
    assert torch.equal(torch.get_rng_state(), state)


def test_refusals() -> None:
    x = _set(3, 4, 1)
    for measure in (frechet, kernel):
        with pytest.raises(SettingError, match="two pictures or more"):
            measure(x[:1], x)
        with pytest.raises(SettingError, match="two pictures or more"):
            measure(x, x[:0])
        with pytest.raises(SettingError, match="same encoder"):
            measure(x, x[:, :2])
        with pytest.raises(NumericsError, match="not finite"):
            measure(x, x / 0)
