"""A start without the adversary: for the first part of a training, a role is simply that of another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .moment import CONCEPT, MAIN, STUDENT, Ask, Features, Moment
from .plan import KEEP, Maker
from .run import Run
from .switch import Switch


@dataclass(frozen=True)
class After:
    """Features of a prompt at first, then a maker's.

    Attributes:
        maker: what makes features later on; it is not called before.
        switch: when that begins.
        role: whose features these have.
        at: name of the latents whose scenes say the prompts.
    """

    maker: Maker
    switch: Switch
    role: str = CONCEPT
    at: str = MAIN

    def make(self, run: Run, moment: Moment) -> Features:
        if self.switch.thrown(run):
            return self.maker.make(run, moment)
        return run.of_role(Ask(STUDENT, self.role, self.at), moment[self.at])


@dataclass(frozen=True)
class Tether:
    """How far the tensors have gone since the first part ended: the sum over them of the mean absolute difference.

    Attributes:
        switch: when the second part begins; the tensors are free in the first.
        weight: factor in the loss; 0 for none.
        aim: KEEP.
    """

    switch: Switch
    weight: float
    aim: str = KEEP

    def asks(self) -> Sequence[Ask]:
        return ()

    def loss(self, run: Run, moment: Moment, seen: Mapping[Ask, Tensor]) -> Tensor:
        if not self.weight or not self.switch.thrown(run):
            return torch.zeros(())
        start, own = self.switch.tensors(run), run.trainables.tensors
        return torch.stack([(tensor - start[name]).abs().mean().cpu() for name, tensor in own.items()]).sum()
