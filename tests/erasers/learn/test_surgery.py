"""Gradient surgery: what it takes from a gradient, and when it takes nothing."""

from __future__ import annotations

import pytest
import torch
from lethe.erasers.algebra.parameters import AS_RELEASED
from lethe.erasers.learn.surgery import Surgery
from torch import Tensor


def _pair(size: float, sign: float) -> tuple[Tensor, Tensor]:
    """Two gradients of 5x7 whose product has a sign; the first has a length."""
    generator = torch.Generator().manual_seed(2)
    own, other = (torch.randn(5, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    if float((own * other).sum()) * sign < 0:
        other = -other
    return own / own.norm() * size, other * 3


def _one(surgery: Surgery, own: Tensor, other: Tensor) -> Tensor:
    (found,) = surgery([own], [other])
    assert found is not None
    return found


@pytest.mark.parametrize("size", [1e-12, 0.1, 40.0])
def test_a_conflict_vanishes_and_nothing_else(size: float) -> None:
    own, other = _pair(size, -1)
    found = _one(Surgery(), own, other)
    assert float((found * other).sum()) == pytest.approx(0, abs=1e-12 * size)
    across = own - (own * other).sum() / other.square().sum() * other
    assert torch.allclose(found, across, rtol=1e-9, atol=1e-12 * size)


def test_lam_is_the_share_that_goes() -> None:
    own, other = _pair(2.0, -1)
    found = _one(Surgery(0.25), own, other)
    assert float((found * other).sum()) == pytest.approx(0.75 * float((own * other).sum()))


@pytest.mark.parametrize("variant", ["corrected", "as released"])
def test_gradients_that_agree_are_not_changed(variant: str) -> None:
    own, other = _pair(0.3, 1)
    assert _one(Surgery(1.0, variant), own, other) is own


def test_the_released_form_turns_a_small_conflict_round() -> None:
    own, other = _pair(0.1, -1)
    cos = float((own * other).sum() / own.norm() / other.norm())
    found = _one(Surgery(1.0, AS_RELEASED), own, other)
    assert torch.allclose(found, own - cos * other / other.norm())
    assert float((found * other).sum()) > 0
    own, other = _pair(1.0, -1)
    assert torch.allclose(_one(Surgery(1.0, AS_RELEASED), own, other), _one(Surgery(), own, other))


def test_tiny_float32_gradients_are_parted_all_the_same() -> None:
    own, other = (part.float() * 1e-25 for part in _pair(1.0, -1))
    found = _one(Surgery(), own, other)
    assert float((found * 1e25 * (other * 1e25)).sum()) == pytest.approx(0, abs=1e-5)


def test_what_is_missing_or_zero_changes_nothing() -> None:
    own, other = _pair(1.0, -1)
    assert Surgery()([own, None, None], [None, other, None]) == [own, None, None]
    assert _one(Surgery(), own, torch.zeros_like(own)) is own


def test_each_tensor_is_parted_alone() -> None:
    own, other = _pair(1.0, -1)
    first, second = Surgery()([own, own], [other, -other])
    assert first is not None
    assert not torch.equal(first, own)
    assert second is own
