"""ACE's term for the empty prompt: it leans towards the concept, so that guidance leads away from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from .moment import CONCEPT, MAIN, NULL, STUDENT, TEACHER, Ask, Moment
from .plan import ERASE
from .run import Run
from .space import wide


@dataclass(frozen=True)
class AntiEdit:
    """mse(S(null), T(null) + eta D(concept) - correction sum_j w_j D(anchor_j)), where D(p) = T(p) - T(null).

    Attributes:
        eta: how far the empty prompt leans towards the concept.
        correction: how far from the anchors; it is not divided by their number.
        anchors: their roles.
        concept: the concept's own.
        alike: whether w_j is an anchor's likeness to the concept; otherwise 1.
        at: name of the latents.
        weight: factor in the loss.
        aim: ERASE or KEEP.
    """

    eta: float
    correction: float
    anchors: tuple[str, ...]
    alike: bool = False
    concept: str = CONCEPT
    at: str = MAIN
    weight: float = 1.0
    aim: str = ERASE

    def asks(self) -> Sequence[Ask]:
        return [Ask(STUDENT, NULL, self.at), *(Ask(TEACHER, r, self.at) for r in (NULL, self.concept, *self.anchors))]

    def loss(self, run: Run, moment: Moment, seen: Mapping[Ask, Tensor]) -> Tensor:
        null = seen[Ask(TEACHER, NULL, self.at)]
        target = null + self.eta * (seen[Ask(TEACHER, self.concept, self.at)] - null)
        for role in self.anchors:
            towards = seen[Ask(TEACHER, role, self.at)] - null
            target = target - self.correction * wide(self._weights(run, moment, role), towards) * towards
        return (seen[Ask(STUDENT, NULL, self.at)] - target).square().mean()

    @torch.no_grad()
    def _weights(self, run: Run, moment: Moment, role: str) -> Tensor:
        """Weights of an anchor `[n]`: cosines to the concept of text features less the empty prompt's, not below 0."""
        latents = moment[self.at]
        if not self.alike:
            return torch.ones(len(latents.x))
        null, own, other = (
            run.of_role(Ask(TEACHER, r, self.at), latents).states.flatten(1) for r in (NULL, self.concept, role)
        )
        return functional.cosine_similarity(own - null, other - null).clamp_min(0)
