"""A term on the student at another strength of its adapters: 0 is the teacher, and below 0 the other way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from .moment import TEACHER, Ask, Moment
from .plan import Wrapped
from .run import Run
from .spent import spent

_UP = ".up"


@dataclass(frozen=True)
class AtStrength(Wrapped):
    """A term whose student acts at a strength of its own; for adapters of low rank.

    Attributes:
        term: the term.
        strength: factor of what the adapters add.
    """

    strength: float

    def asks(self) -> Sequence[Ask]:
        return [ask for ask in self.term.asks() if ask.source == TEACHER]

    def loss(self, run: Run, moment: Moment, seen: Mapping[Ask, Tensor]) -> Tensor:
        own = dict(run.trainables.tensors)
        turned = {name: self.strength * tensor for name, tensor in own.items() if name.endswith(_UP)}
        with run.acting_as(turned):
            found = run.seen([ask for ask in self.term.asks() if ask.source != TEACHER], moment)
            return spent(self.term.loss(run, moment, {**seen, **found}), own.values())
