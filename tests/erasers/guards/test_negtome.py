"""NegToMe against its equations, place by place."""

from __future__ import annotations

import pytest
import torch
from lethe.erasers.guards import negtome
from lethe.erasers.guards.negtome import Pushed
from lethe.erasers.window import Window
from torch.nn.functional import cosine_similarity


def part(alpha: float = 0.9, threshold: float = 0.2, coarsest: float = 4.0, attention: str = "both") -> Pushed:
    return Pushed(torch.zeros(1, 4, 8, 8), Window(), alpha, threshold, coarsest, attention)


@pytest.fixture
def features() -> torch.Tensor:
    return torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def others() -> torch.Tensor:
    """More places than the picture has, so that an index over the wrong axis shows."""
    return 3 * torch.randn(11, 5, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("held", [2**24, 33])
def test_each_place_leaves_the_reference_place_that_is_most_like_it(
    features: torch.Tensor, others: torch.Tensor, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(negtome, "_MOST", held)
    found, moved = part(threshold=0.6).push(features, others), 0
    for row in range(2):
        for place in range(7):
            o = features[row, place]
            likeness = torch.stack([cosine_similarity(o, r, dim=0) for r in others])
            r = others[likeness.argmax()]
            expected = 1.9 * o - 0.9 * r if likeness.max() > 0.6 else o
            moved += bool(likeness.max() > 0.6)
            assert torch.allclose(found[row, place], expected, atol=1e-5)
    assert 0 < moved < 14


def test_features_that_are_like_nothing_stay_bit_for_bit(features: torch.Tensor, others: torch.Tensor) -> None:
    assert torch.equal(part(threshold=1.0).push(features, others), features)


def test_a_copy_of_the_picture_pushes_nothing(features: torch.Tensor) -> None:
    assert torch.allclose(part().push(features[:1], features[0]), features[:1], atol=1e-5)


def test_it_acts_in_output_blocks_that_are_fine_enough() -> None:
    assert part().acts("output", True, 4.0) and part().acts("output", False, 1.0)
    assert not part().acts("output", False, 5.0) and not part().acts("middle", False, 1.0)
    assert not part(attention="self").acts("output", True, 1.0) and part(attention="self").acts("output", False, 1.0)
