"""Prompts that are drawn anew at every step, whatever scene a row of latents belongs to."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .moment import MAIN, Features, Moment
from .run import Run

DRAWN = "drawn"
"""Role: prompts drawn for a step; they are numbered."""


def drawn_roles(count: int) -> tuple[str, ...]:
    """Roles of several prompts drawn for a step."""
    return tuple(f"{DRAWN} {number}" for number in range(count))


@dataclass(frozen=True)
class Drawn:
    """One of some prompts for each row of latents, each as likely; teacher's features of it.

    Attributes:
        prompts: to draw from.
        at: name of the latents.
    """

    prompts: tuple[str, ...]
    at: str = MAIN

    def make(self, run: Run, moment: Moment) -> Features:
        chosen = torch.randint(len(self.prompts), (len(moment[self.at].x),), generator=run.generator)
        return run.features([self.prompts[index] for index in chosen.tolist()])
