"""Terms that pull the student's prediction towards a target: most published losses are one or two of these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..errors import SettingError
from .moment import CONCEPT, MAIN, STUDENT, TEACHER, Ask, Moment
from .plan import ERASE, KEEP
from .run import Run
from .space import own_space

_SUM = 1e-6


Target = Mapping[tuple[str, str], float]
"""Weights of predictions by (source, role); they sum to 1, so that it is the same in every prediction space."""


def check_target(target: Target) -> None:
    """SettingError for a target whose weights do not sum to 1."""
    total = sum(target.values())
    if abs(total - 1) > _SUM:
        raise SettingError(f"A target's weights add up to {total:g}.", "They have to add up to 1.")


@dataclass(frozen=True)
class Regress:
    """Mean squared error between the student's prediction and a linear target, over all elements.

    Attributes:
        target: what it is pulled towards.
        student: role whose prediction is trained.
        at: name of the latents.
        weight: factor in the loss.
        aim: ERASE or KEEP.
    """

    target: Target
    student: str = CONCEPT
    at: str = MAIN
    weight: float = 1.0
    aim: str = ERASE

    def __post_init__(self) -> None:
        check_target(self.target)

    def asks(self) -> Sequence[Ask]:
        teachers = [Ask(source, role, self.at) for (source, role), weight in self.target.items() if weight]
        return [Ask(STUDENT, self.student, self.at), *teachers]

    def loss(self, run: Run, moment: Moment, seen: Mapping[Ask, Tensor]) -> Tensor:
        parts = (weight * seen[Ask(*key, self.at)] for key, weight in self.target.items() if weight)
        return (seen[Ask(STUDENT, self.student, self.at)] - sum(parts)).square().mean()


def same(role: str, weight: float = 1.0, at: str = MAIN) -> Regress:
    """The student predicts what the teacher does, for the same role and latents: what is kept."""
    return Regress({(TEACHER, role): 1.0}, role, at, weight, KEEP)


def negative_guidance(eta: float, role: str = CONCEPT, null: str = "null", weight: float = 1.0) -> Regress:
    """ESD's target, T(null) - eta [T(concept) - T(null)], for the student's prediction of `role`."""
    return Regress({(TEACHER, null): 1 + eta, (TEACHER, CONCEPT): -eta}, role, weight=weight)


@dataclass(frozen=True)
class Denoise:
    """Mean squared error against what was mixed into clean latents: the ordinary diffusion loss, or its reverse.

    Attributes:
        student: role whose prediction is trained.
        at: name of the latents; they carry `clean` and `noise`.
        weight: factor in the loss; negative to climb.
        aim: ERASE or KEEP.
    """

    student: str
    at: str = MAIN
    weight: float = 1.0
    aim: str = KEEP

    def asks(self) -> Sequence[Ask]:
        return [Ask(STUDENT, self.student, self.at)]

    def loss(self, run: Run, moment: Moment, seen: Mapping[Ask, Tensor]) -> Tensor:
        latents = moment[self.at]
        assert latents.clean is not None
        truth = own_space(run.model.prediction(), latents.x, latents.sigma, latents.clean)
        error = (seen[Ask(STUDENT, self.student, self.at)] - truth).square()
        return error.mean() if latents.regions is None else (error * latents.regions[:, None]).mean()
