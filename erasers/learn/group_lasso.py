"""A penalty that leaves few blocks of a model changed: the sum of the blocks' norms (GS-LoRA, arXiv 2403.11530)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .trainables import Trainables


@dataclass(frozen=True)
class GroupLasso:
    """weight * sum over blocks of sqrt( sum of the squares of all that is trained in the block ).

    Attributes:
        weight: factor in the loss.
    """

    weight: float

    def __call__(self, trainables: Trainables) -> Tensor:
        norms = [
            torch.cat([trainables.tensors[name].flatten() for name in names]).norm()
            for names in trainables.groups.values()
        ]
        # Predictions, and so the other losses, are on the CPU.
        return self.weight * torch.stack(norms).sum().float().cpu()
