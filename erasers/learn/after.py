"""A start without the adversary: for the first part of a training, a role is simply that of another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .moment import CONCEPT, MAIN, STUDENT, Ask, Features, Moment
from .plan import KEEP, Maker
from .run import Run

_BEGUN = "after"


@dataclass(frozen=True)
class After:
    """Features of a prompt at first, then a maker's.

    Attributes:
        maker: what makes features later on; it is not called before.
        share: of the training's steps that come first.
        role: whose features these have.
        at: name of the latents whose scenes say the prompts.
    """

    maker: Maker
    share: float
    role: str = CONCEPT
    at: str = MAIN

    def make(self, run: Run, moment: Moment) -> Features:
        if begun(run, self.share):
            return self.maker.make(run, moment)
        return run.of_role(Ask(STUDENT, self.role, self.at), moment[self.at])


@dataclass(frozen=True)
class Tether:
    """How far the tensors have gone since the first part ended: the sum over them of the mean absolute difference.

    Attributes:
        share: of the training's steps that come first; the tensors are free in them.
        weight: factor in the loss; 0 for none.
        aim: KEEP.
    """

    share: float
    weight: float
    aim: str = KEEP

    def asks(self) -> Sequence[Ask]:
        return ()

    def loss(self, run: Run, moment: Moment, seen: Mapping[Ask, Tensor]) -> Tensor:
        if not self.weight or not begun(run, self.share):
            return torch.zeros(())
        own = run.trainables.tensors
        if any(self._key(name) not in run.memory for name in own):
            run.memory |= {self._key(name): tensor.detach().clone() for name, tensor in own.items()}
        gone = [(tensor - run.memory[self._key(name)].to(tensor)).abs().mean().cpu() for name, tensor in own.items()]
        return torch.stack(gone).sum()

    def _key(self, name: str) -> str:
        return f"{_BEGUN}.{name}"


def begun(run: Run, share: float) -> bool:
    """Whether the first part is over; once it is, it stays so in a longer run that goes on from here."""
    if _BEGUN not in run.memory and run.step >= round(share * run.schedule.steps):
        run.memory[_BEGUN] = torch.tensor(run.step)
    return _BEGUN in run.memory
