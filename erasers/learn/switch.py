"""The moment in a training when its second part begins, and what the tensors were then."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .run import Run


@dataclass(frozen=True)
class Switch:
    """When the second part begins.

    Attributes:
        share: of a training's steps that the first part takes, 0 to 1.
        name: under which the moment is remembered.
    """

    share: float
    name: str = "first part"

    def thrown(self, run: Run) -> bool:
        """Whether the second part has begun; once it has, it stays so in a longer run that goes on from here."""
        if self.name not in run.memory and run.step >= round(self.share * run.schedule.steps):
            run.memory[self.name] = torch.tensor(run.step)
        return self.name in run.memory

    def tensors(self, run: Run) -> Mapping[str, Tensor]:
        """The tensors in training as they were at the first call for this; to be called once it is thrown."""
        own = run.trainables.tensors
        keys = {name: f"{self.name}.{name}" for name in own}
        if any(key not in run.memory for key in keys.values()):
            run.memory |= {keys[name]: tensor.detach().clone() for name, tensor in own.items()}
        return {name: run.memory[keys[name]].to(tensor) for name, tensor in own.items()}
