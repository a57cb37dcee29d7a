"""Training in two stages on the same tensors, where the second is measured against what the first has made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from .moment import STUDENT, Ask, Latents, Moment
from .plan import Source, Term
from .run import Run
from .switch import Switch


@dataclass(frozen=True)
class StagedSource:
    """Latents of one source in the first stage, and of another in the second."""

    switch: Switch
    first: Source
    then: Source

    def draw(self, run: Run, rows: int) -> Mapping[str, Latents]:
        return (self.then if self.switch.thrown(run) else self.first).draw(run, rows)


@dataclass(frozen=True)
class StagedTerm:
    """One term in the first stage, and another in the second, whose target the student of the first stage makes.

    Attributes:
        switch: when the second begins.
        first: the term until then.
        then: the term from then on. Where it asks for another source than the student, the student of the first
            stage answers.
        aim, weight: of both; their own weights do not count.
    """

    switch: Switch
    first: Term
    then: Term
    aim: str
    weight: float = 1.0

    def asks(self) -> Sequence[Ask]:
        """Nothing ahead of time: the two stages need different predictions."""
        return ()

    def loss(self, run: Run, moment: Moment, seen: Mapping[Ask, Tensor]) -> Tensor:
        if not self.switch.thrown(run):
            return self.first.loss(run, moment, run.seen(self.first.asks(), moment))
        asks = self.then.asks()
        with run.acting_as(self.switch.tensors(run)):
            found = run.seen([ask for ask in asks if ask.source != STUDENT], moment)
        return self.then.loss(run, moment, found | run.seen([ask for ask in asks if ask.source == STUDENT], moment))
