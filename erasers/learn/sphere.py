"""Random text features around a prompt's: its neighbourhood, and what lies outside, after RealEra (arXiv 2410.09140).

The paper calls an embedding e + n a neighbour where |n| <= D1 and cos(e, e + n) lies in a band [S1, S2], and holds
others; how they are drawn is not published. Here every token's features move on their own, along directions drawn
evenly, by a distance drawn evenly, and what lies outside the band is drawn again. Distances are shares of the length
of the token's own features. The start token says the same in every prompt and stays.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import SettingError
from .moment import CONCEPT, MAIN, TEACHER, Ask, Features, Moment
from .run import Run

NEAR, FAR = "near", "far"
"""Roles: features in the neighbourhood of the concept's, and outside."""
_TRIES = 200
"""Draws of one token's features before the bounds are taken to exclude each other."""


@dataclass(frozen=True)
class Sphere:
    """Features at a distance to a role's; pooled features stay.

    Attributes:
        inner, outer: bounds of the distance, as shares of the length.
        low, high: bounds of the cosine.
        role: what is in the middle.
        at: name of the latents.
    """

    inner: float
    outer: float
    low: float = -1.0
    high: float = 1.0
    role: str = CONCEPT
    at: str = MAIN

    def make(self, run: Run, moment: Moment) -> Features:
        own = run.of_role(Ask(TEACHER, self.role, self.at), moment[self.at])
        states = own.states.clone()
        rows = states[:, 1:].flatten(0, 1)
        states[:, 1:] = self.around(rows, run.generator).view_as(states[:, 1:])
        return replace(own, states=states)

    def around(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """A point around each of `rows` `[n, d]`, within the bounds.

        Raises:
            SettingError: no point was found within them.
        """
        found, missing = rows.clone(), torch.arange(len(rows))
        for _ in range(_TRIES):
            own = rows[missing]
            ways = functional.normalize(torch.randn(own.shape, generator=generator), dim=1).to(own)
            reach = self.inner + (self.outer - self.inner) * torch.rand(len(own), 1, generator=generator).to(own)
            drawn = own + ways * reach * own.norm(dim=1, keepdim=True)
            cosine = functional.cosine_similarity(own, drawn, dim=1)
            fits = (cosine >= self.low) & (cosine <= self.high)
            found[missing[fits.to(missing.device)]] = drawn[fits]
            missing = missing[~fits.to(missing.device)]
            if not len(missing):
                return found
        raise SettingError(
            f"No neighbour has a cosine from {self.low:g} to {self.high:g} at a distance of at most {self.outer:g}.",
            "In many dimensions the cosine at a distance r is about 1 / sqrt(1 + r * r): widen either bound.",
        )
