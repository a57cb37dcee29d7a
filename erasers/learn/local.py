"""Receler's local regulariser (arXiv 2311.17717): small networks add nothing where the concept is not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .moment import ATTACKED, MAIN, STUDENT, Ask, Moment
from .plan import KEEP
from .region import Region, at_size
from .run import Run


@dataclass(frozen=True)
class Local:
    """Mean squared output of the trained networks outside the concept's region, mean over networks and rows.

    Attributes:
        region: finds the pixels of the concept.
        student: role of the student's pass that the outputs come from; the plan's only one.
        weight: factor in the loss.
        aim: ERASE or KEEP.
    """

    region: Region
    student: str = ATTACKED
    weight: float = 0.1
    aim: str = KEEP

    def asks(self) -> Sequence[Ask]:
        return [Ask(STUDENT, self.student)]

    def loss(self, run: Run, moment: Moment, seen: Mapping[Ask, Tensor]) -> Tensor:
        latents, outputs = moment[MAIN], list(run.trainables.outputs.values())
        region = self.region(run, latents)
        parts = []
        for output in outputs:
            outside = 1 - at_size(region, output.shape[1], *latents.x.shape[-2:]).to(output.device)
            energy = output.float().square().mean(-1)
            # A region that is the whole picture leaves nothing to hold.
            parts.append(((outside * energy).sum(1) / outside.sum(1).clamp(min=1)).mean())
        return torch.stack(parts).mean().cpu()
