"""The sum of blocks' norms, and ascent up to a bound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pytest
import torch
from lethe.erasers.learn.bounded import Bounded
from lethe.erasers.learn.group_lasso import GroupLasso
from lethe.erasers.learn.moment import Ask, Moment
from lethe.erasers.learn.run import Run
from lethe.erasers.learn.trainables import Trainables
from torch import Tensor


def _trainables() -> Trainables:
    torch.manual_seed(0)
    tensors = {name: torch.randn(3, 4, dtype=torch.float64).requires_grad_() for name in "abcz"}
    with torch.no_grad():
        tensors["z"].zero_()
    return Trainables(tensors, [], lambda found: {}, groups={"one": ("a",), "two": ("b", "c"), "none": ("z",)})


def test_a_block_of_one_tensor_counts_with_its_frobenius_norm() -> None:
    found = _trainables()
    a, b, c = (found.tensors[name] for name in "abc")
    expected = a.norm() + (b.square().sum() + c.square().sum()).sqrt()
    assert float(GroupLasso(0.5)(found).detach()) == pytest.approx(0.5 * float(expected.detach()), rel=1e-6)


def test_the_gradient_of_each_block_has_a_norm_of_one_and_none_at_zero() -> None:
    found = _trainables()
    gradients = torch.autograd.grad(GroupLasso(1.0)(found), list(found.tensors.values()))
    own = dict(zip(found.tensors, gradients, strict=True))
    assert float(own["a"].norm()) == pytest.approx(1, rel=1e-6)
    assert float(torch.cat([own["b"], own["c"]]).norm()) == pytest.approx(1, rel=1e-6)
    assert not own["z"].any()


@dataclass(frozen=True)
class Known:
    """A term whose loss is given."""

    value: Tensor
    weight: float = 7.0
    aim: str = "keep"

    def asks(self) -> Sequence[Ask]:
        return [Ask("student", "concept")]

    def loss(self, run: Run, moment: Moment, seen: Mapping[Ask, Tensor]) -> Tensor:
        return self.value


@pytest.mark.parametrize(("value", "loss", "slope"), [(0.2, 0.8, -1.0), (1.5, 0.0, 0.0)])
def test_ascent_ends_at_the_bound(value: float, loss: float, slope: float) -> None:
    leaf = torch.tensor(value, requires_grad=True)
    term = Bounded(Known(leaf), 1.0, 0.15)
    found = term.loss(None, {}, {})  # type: ignore[arg-type]
    assert float(found.detach()) == pytest.approx(loss)
    assert float(torch.autograd.grad(found, [leaf])[0]) == slope
    assert (term.aim, term.weight) == ("erase", 0.15) and term.asks() == Known(leaf).asks()
