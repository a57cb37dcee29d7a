"""A margin between two targets (TRCE, arXiv 2503.07389): nearer to the one than to the other by m, and no further."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from .moment import MAIN, STUDENT, Ask, Moment
from .plan import ERASE
from .regress import Target, check_target
from .run import Run


@dataclass(frozen=True)
class Hinge:
    """relu( mse(S, prefer) - mse(S, reject) + m ) of each row, mean over rows.

    Attributes:
        prefer, reject: linear targets.
        student: role whose prediction is trained.
        margin: m, in the model's own prediction space.
        at: name of the latents.
        weight: factor in the loss.
        aim: ERASE or KEEP.
    """

    prefer: Target
    reject: Target
    student: str
    margin: float = 0.01
    at: str = MAIN
    weight: float = 1.0
    aim: str = ERASE

    def __post_init__(self) -> None:
        for target in (self.prefer, self.reject):
            check_target(target)

    def asks(self) -> Sequence[Ask]:
        named = [key for target in (self.prefer, self.reject) for key, weight in target.items() if weight]
        return [Ask(STUDENT, self.student, self.at), *(Ask(*key, self.at) for key in dict.fromkeys(named))]

    def loss(self, run: Run, moment: Moment, seen: Mapping[Ask, Tensor]) -> Tensor:
        own = seen[Ask(STUDENT, self.student, self.at)]

        def error(target: Target) -> Tensor:
            goal = sum(weight * seen[Ask(*key, self.at)] for key, weight in target.items() if weight)
            return (own - goal).square().flatten(1).mean(1)

        return (error(self.prefer) - error(self.reject) + self.margin).relu().mean()
