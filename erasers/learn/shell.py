"""Random text features at about the length of a prompt's own: SPM's anchors (Lyu et al., arXiv 2312.16145).

Directions are drawn evenly and taken with a probability of 1 - cos to the prompt's features, so that none is near
it. In the tens of thousands of dimensions of a prompt's features nearly every direction is at right angles to it:
the anchors are points of a shell.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from .moment import CONCEPT, MAIN, TEACHER, Ask, Features, Moment
from .run import Run

SHELL = "shell"
"""Role: random features; they are numbered."""


def shell_roles(count: int) -> tuple[str, ...]:
    """Roles of several anchors of a step."""
    return tuple(f"{SHELL} {number}" for number in range(count))


@dataclass(frozen=True)
class Shell:
    """Random features around the origin, at the distance of a role's features.

    Attributes:
        role: whose features give the distance, and are kept away from.
        spread: the distance is drawn evenly from within this share of it, to both sides.
        at: name of the latents.
    """

    role: str = CONCEPT
    spread: float = 0.2
    at: str = MAIN

    def make(self, run: Run, moment: Moment) -> Features:
        own = run.of_role(Ask(TEACHER, self.role, self.at), moment[self.at])
        states, pooled = (
            None if rows is None else torch.stack([shell_point(row, self.spread, run.generator) for row in rows])
            for rows in (own.states, own.pooled)
        )
        assert states is not None
        return replace(own, states=states, pooled=pooled)


def shell_point(centre: Tensor, spread: float, generator: torch.Generator) -> Tensor:
    """A random tensor of the shape of `centre` and about its length, seldom in its direction."""
    while True:
        drawn = torch.randn(centre.shape, generator=generator).to(centre)
        chance, share = torch.rand(2, generator=generator).tolist()
        if not chance > 1 - float(functional.cosine_similarity(drawn.flatten(), centre.flatten(), dim=0)):
            reach = 1 + spread * (2 * share - 1)
            return drawn * (reach * centre.norm() / drawn.norm())
