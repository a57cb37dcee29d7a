"""How much a model looks at a concept's tokens: the norm of its cross-attention to them, which training brings down.

The prediction itself is not used; only what leads to queries and keys gets gradients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .attention import watching
from .moment import CONCEPT, MAIN, STUDENT, Ask, Moment
from .places import EVERY, token_mask
from .plan import ERASE
from .region import Region, at_size
from .run import Run


@dataclass(frozen=True)
class AttentionNorm:
    """Frobenius norm of the student's attention to the concept's tokens, mean over rows.

    Attributes:
        ends: end tokens that count with the name's (learn/places.py).
        per_layer: the sum of the layers' norms (MACE), else one norm over all of them (Forget-Me-Not).
        region: finds the pixels that count; None for all of them.
        weight: factor in the loss.
        aim: ERASE or KEEP.
    """

    ends: str = EVERY
    per_layer: bool = False
    region: Region | None = None
    weight: float = 1.0
    aim: str = ERASE

    def asks(self) -> Sequence[Ask]:
        return ()

    def loss(self, run: Run, moment: Moment, seen: Mapping[Ask, Tensor]) -> Tensor:
        latents = moment[MAIN]
        region = None if self.region is None else self.region(run, latents)
        with watching(run) as attention:
            run.student(latents, run.of_role(Ask(STUDENT, CONCEPT), latents))
        tokens = token_mask(run.task, latents.scenes, self.ends)
        norms = []
        for maps in attention.maps().values():
            own = maps * tokens.to(maps)[:, None, None]
            if region is not None:
                inside = at_size(region, maps.shape[2], *latents.x.shape[-2:])
                own = own * inside.to(maps)[:, None, :, None]
            norms.append(torch.linalg.vector_norm(own.flatten(1), dim=1))
        stacked = torch.stack(norms)
        total = stacked.sum(0) if self.per_layer else torch.linalg.vector_norm(stacked, dim=0)
        return total.mean().cpu()
