"""Edits written into weights: every form of them against float64, and what is given stays."""

from __future__ import annotations

import pytest
import torch
from lethe.erasers.algebra.written import written
from lethe.erasers.errors import FamilyError
from lethe.erasers.result import WeightEdit
from lethe.kernels.dispatch import forced
from lethe.kernels.errors import NoBackendError
from torch import Tensor

SHAPES = {"thin": (17, 33), "conv": (6, 5, 3, 3), "whole": (7, 4), "places": (8, 9), "empty": (3, 4)}
DTYPES = {torch.float32: 2.0**-21, torch.float16: 0.51 * 2.0**-10, torch.bfloat16: 0.51 * 2.0**-7}
"""Largest error relative to a number of about 1 or more: sums in float32, or one rounding."""


def _edits() -> dict[str, WeightEdit]:
    return {
        "thin": WeightEdit(down=torch.randn(3, 33), up=torch.randn(17, 3)),
        "conv": WeightEdit(down=torch.randn(2, 45), up=torch.randn(6, 2)),
        "whole": WeightEdit(dense=torch.randn(7, 4)),
        "places": WeightEdit(indices=torch.tensor([0, 40]), values=torch.tensor([2.0, -3.0])),
        "empty": WeightEdit(down=torch.randn(0, 4), up=torch.randn(3, 0)),
    }


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def _weights(dtype: torch.dtype) -> dict[str, Tensor]:
    found = {name: torch.randn(shape).to(dtype) for name, shape in SHAPES.items()}
    found["conv"] = found["conv"].contiguous(memory_format=torch.channels_last)
    return found


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_every_form_is_added_at_its_strength(dtype: torch.dtype) -> None:
    weights, edits = _weights(dtype), _edits()
    before = {name: weight.clone() for name, weight in weights.items()}
    found = written(weights, edits, 0.7)
    assert found.keys() == edits.keys()
    for name, edit in edits.items():
        assert found[name].dtype == dtype
        truth = before[name].double() + 0.7 * edit.delta(SHAPES[name]).double()
        error = (found[name].double() - truth).abs() / truth.abs().clamp_min(1.0)
        assert float(error.max()) <= DTYPES[dtype]
        assert weights[name].equal(before[name])
        assert found[name].data_ptr() != weights[name].data_ptr()


def test_strength_zero_gives_the_weights_bit_for_bit() -> None:
    weights = _weights(torch.float16)
    found = written(weights, _edits(), 0.0)
    assert all(found[name].equal(weight) for name, weight in weights.items())
    assert written(weights, {}, 1.0) == {}


def test_factors_go_through_the_kernel() -> None:
    weights, edits = _weights(torch.float32), _edits()
    with forced(grouped="none"), pytest.raises(NoBackendError):
        written(weights, edits, 1.0)
    with forced(grouped="none"):
        written(weights, {"whole": edits["whole"]}, 1.0)


@pytest.mark.parametrize("form", [{"dense": torch.ones(2, 2)}, {"down": torch.ones(1, 4), "up": torch.ones(2, 1)}])
def test_what_does_not_fit_is_refused(form: dict[str, Tensor]) -> None:
    with pytest.raises(FamilyError, match="does not fit"):
        written(_weights(torch.float32), {"whole": WeightEdit(**form)}, 1.0)
    with pytest.raises(FamilyError, match="no weight 'elsewhere'"):
        written(_weights(torch.float32), {"elsewhere": WeightEdit(**form)}, 1.0)
