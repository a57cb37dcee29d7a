"""A term on guided predictions: the student's own guidance towards a role is trained, not the role's prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from .moment import CONCEPT, MAIN, NULL, STUDENT, TEACHER, Ask, Moment
from .plan import ERASE
from .run import Run


@dataclass(frozen=True)
class RegressGuided:
    """Mean squared error between guided predictions, S_w(role) and T(null) + eta [T_w(role) - T(null)].

    P_w(role) = P(null) + w [P(role) - P(null)] for both. Gradients reach both of the student's predictions. At w = 1
    this is `Regress` with weights 1 - eta and eta.

    Attributes:
        eta: how far towards the role the target is; negative for away from it.
        w: guidance scale.
        role: the role.
        at: name of the latents.
        weight: factor in the loss.
        aim: ERASE or KEEP.
    """

    eta: float
    w: float
    role: str = CONCEPT
    at: str = MAIN
    weight: float = 1.0
    aim: str = ERASE

    def asks(self) -> Sequence[Ask]:
        return [Ask(source, role, self.at) for source in (STUDENT, TEACHER) for role in (self.role, NULL)]

    def loss(self, run: Run, moment: Moment, seen: Mapping[Ask, Tensor]) -> Tensor:
        own, other, said, unsaid = (seen[ask] for ask in self.asks())
        target = unsaid + self.eta * self.w * (said - unsaid)
        return (other + self.w * (own - other) - target).square().mean()
