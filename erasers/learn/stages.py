"""Training in two stages on the same tensors, where the second is measured against what the first has made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from .moment import STUDENT, Ask, Latents, Moment
from .plan import Source, Term
from .run import Run


@dataclass(frozen=True)
class Switch:
    """When the second stage begins.

    Attributes:
        share: of a training's steps that the first takes, 0 to 1.
        name: under which the student of that moment is remembered.
    """

    share: float
    name: str = "first stage"

    def thrown(self, run: Run) -> bool:
        """Whether the second stage has begun; once it has, it stays so in a longer run that goes on from here."""
        return self._key("") in run.memory or run.step >= round(self.share * run.schedule.steps)

    @contextmanager
    def before(self, run: Run) -> Iterator[None]:
        """The student acts as it did when the second stage began, while the block runs; only once that has begun."""
        own = dict(run.trainables.tensors)
        if self._key("") not in run.memory:
            run.memory |= {self._key(name): tensor.detach().clone() for name, tensor in own.items()}
            run.memory[self._key("")] = torch.tensor(run.step)
        run.trainables.tensors.update({name: run.memory[self._key(name)].to(own[name].device) for name in own})
        try:
            yield
        finally:
            run.trainables.tensors.update(own)

    def _key(self, name: str) -> str:
        return f"{self.name}.{name}"


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
        with self.switch.before(run):
            found = run.seen([ask for ask in asks if ask.source != STUDENT], moment)
        return self.then.loss(run, moment, found | run.seen([ask for ask in asks if ask.source == STUDENT], moment))
