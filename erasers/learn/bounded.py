"""Ascent with an end: a term's loss is driven up to a bound, and not further (GS-LoRA, arXiv 2403.11530)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from .moment import Ask, Moment
from .plan import ERASE, Term
from .run import Run


@dataclass(frozen=True)
class Bounded:
    """relu( bound - loss ) of a term; past the bound it has no gradient.

    Attributes:
        term: what is driven up; its own weight and aim do not count.
        bound: how far.
        weight: factor in the loss.
        aim: ERASE.
    """

    term: Term
    bound: float
    weight: float = 1.0
    aim: str = ERASE

    def asks(self) -> Sequence[Ask]:
        return self.term.asks()

    def loss(self, run: Run, moment: Moment, seen: Mapping[Ask, Tensor]) -> Tensor:
        return (self.bound - self.term.loss(run, moment, seen)).relu()
