"""SAFREE's latent re-attention against a whole Fourier transform."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lethe.erasers.concepts import Concept, ConceptList
from lethe.erasers.errors import FamilyError
from lethe.erasers.guards.safree import GUARD, ReAttention, lowest
from torch import Tensor
from toy_tower import ToyModel

PART = ReAttention({1.0: 0.9, 0.5: 0.2})


def features(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + 0.5


def filtered(edited: Tensor, original: Tensor, scale: float) -> Tensor:
    """Every frequency, shifted so that the lowest stand in the middle, each on its own."""
    found, other = (torch.fft.fftshift(torch.fft.fftn(x.double(), dim=(-2, -1)), (-2, -1)) for x in (edited, original))
    height, width = edited.shape[-2:]
    for row in (height // 2 - 1, height // 2):
        for column in (width // 2 - 1, width // 2):
            larger = found[..., row, column].abs() > 1.01 * other[..., row, column].abs()
            found[..., row, column] *= torch.where(larger, scale, 1.0)
    return torch.fft.ifftn(torch.fft.ifftshift(found, (-2, -1)), dim=(-2, -1)).real.float()


@pytest.mark.parametrize("size", [(8, 8), (7, 5), (4, 9), (2, 3)])
@pytest.mark.parametrize(("width", "scale"), [(1.0, 0.9), (0.5, 0.2)])
def test_the_lowest_frequencies_are_weakened_where_they_grew(size: tuple[int, int], width: float, scale: float) -> None:
    edited, original = features(2, 6, *size), features(2, 6, *size, seed=1)
    kept = PART.keep(original, width)
    assert kept is not None and kept.shape == (2, 6, 4)
    found = PART.change(edited, kept, width)
    assert torch.allclose(found, filtered(edited, original, scale), atol=1e-5)
    assert not torch.allclose(found, edited, atol=1e-3)


def test_what_did_not_grow_stays_bit_for_bit() -> None:
    """Features that are the same but for rounding are left alone too."""
    edited = features(1, 3, 8, 8)
    for original in (2 * edited, edited * (1 - 1e-3)):
        kept = PART.keep(original, 0.5)
        assert kept is not None
        assert torch.equal(PART.change(edited, kept, 0.5), edited)


def test_it_acts_at_the_two_widths_alone_and_in_half_precision() -> None:
    assert PART.keep(features(1, 2, 4, 4), 0.25) is None and PART.keep(features(1, 2, 4, 4), 2.0) is None
    edited = features(1, 2, 8, 8).half()
    found = PART.change(edited, torch.zeros(1, 2, 4), 0.5)
    assert found.dtype == torch.float16
    expected = filtered(edited.float(), torch.zeros(1, 2, 8, 8), 0.2)
    assert torch.allclose(found.float(), expected, atol=2e-3)


def test_waves_of_the_lowest_frequencies_are_orthogonal() -> None:
    waves = lowest(features(1, 1, 6, 4))[1].flatten(1)
    assert torch.allclose(waves @ waves.conj().T, 24 * torch.eye(4, dtype=waves.dtype), atol=1e-4)


def test_a_model_that_is_no_unet_is_refused() -> None:
    model: Any = ToyModel()
    model.modules = lambda pattern: {}
    task = model.task(ConceptList().with_concept(Concept("ball")))
    with pytest.raises(FamilyError, match="UNets"):
        GUARD.plan(task, GUARD.spec.settings({"reattention": True}))
    assert GUARD.plan(task, GUARD.spec.settings({})).skips is None
    model.modules = lambda pattern: {"mid_block": None} if "mid_block" in pattern else {}
    plan = GUARD.plan(task, GUARD.spec.settings({"reattention": True, "s2": 0.4}))
    assert isinstance(plan.skips, ReAttention) and plan.skips.scales == {1.0: 0.9, 0.5: 0.4}
