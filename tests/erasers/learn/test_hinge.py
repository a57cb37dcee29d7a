"""The hinge between two targets."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from lethe.erasers.errors import SettingError
from lethe.erasers.learn.hinge import Hinge
from lethe.erasers.learn.moment import STUDENT, TEACHER, Ask

_ANY: Any = cast(Any, None)
_PREFER, _REJECT = {(TEACHER, "good"): 1.0}, {(TEACHER, "bad"): 1.5, (TEACHER, "null"): -0.5}


def _loss(own: torch.Tensor, good: float, bad: float, null: float, margin: float = 0.01) -> torch.Tensor:
    values = {(STUDENT, "c"): own}
    values |= {(TEACHER, name): torch.full_like(own, v) for name, v in (("good", good), ("bad", bad), ("null", null))}
    seen = {Ask(*key): value.detach() if key[0] == TEACHER else value for key, value in values.items()}
    term = Hinge(_PREFER, _REJECT, "c", margin)
    assert set(term.asks()) == set(seen)
    return term.loss(_ANY, _ANY, seen)


def test_it_is_the_difference_of_errors_and_the_margin() -> None:
    own = torch.zeros(2, 1, 2, 2)
    assert float(_loss(own, good=1.0, bad=0.5, null=0.5)) == pytest.approx(1.0 - 0.25 + 0.01)


def test_it_is_zero_without_gradient_where_the_preferred_is_nearer_by_the_margin() -> None:
    own = torch.zeros(1, 1, 2, 2, requires_grad=True)
    loss = _loss(own, good=0.1, bad=1.0, null=1.0)
    assert float(loss.detach()) == 0.0
    assert not bool(torch.autograd.grad(loss, own)[0].any())
    assert float(_loss(own.detach(), good=0.1, bad=1.0, null=1.0, margin=1.0)) == pytest.approx(0.01, abs=1e-6)


def test_each_row_has_a_hinge_of_its_own() -> None:
    own = torch.stack([torch.zeros(1, 2, 2), torch.ones(1, 2, 2)])
    # The first row is far from being cut off, the second is cut off; their mean error would be as well.
    assert float(_loss(own, good=1.0, bad=0.0, null=0.0)) == pytest.approx(1.01 / 2)


def test_targets_have_to_add_up() -> None:
    with pytest.raises(SettingError):
        Hinge(_PREFER, {(TEACHER, "bad"): 2.0}, "c")
