"""Latents of pairs of the user's pictures: one that shows the concept, and one that shows the same without it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import SettingError
from ..task import Task
from .law import Law, evenly
from .moment import Latents, Scene
from .run import Run
from .space import mixed

SHOWN, GONE = "shown", "gone"
"""Names of the latents of a pair."""


@dataclass(frozen=True)
class Pairs:
    """Both pictures of a pair with the same noise at the same time, drawn anew at every step.

    Attributes:
        scenes: the prompts; every row takes one of them.
        law: of the times.
    """

    scenes: tuple[Scene, ...]
    law: Law = evenly

    def draw(self, run: Run, rows: int) -> Mapping[str, Latents]:
        halves = dict(zip((SHOWN, GONE), pairs_of(run.task), strict=True))
        chosen = torch.randint(len(halves[SHOWN]), (rows,), generator=run.generator)
        said = torch.randint(len(self.scenes), (rows,), generator=run.generator).tolist()
        scenes = tuple(self.scenes[i] for i in said)
        sigma = run.model.level(self.law(rows, run.generator))
        noise = torch.randn(rows, *halves[SHOWN].shape[1:], generator=run.generator)
        return {
            name: Latents(
                mixed(run.model.prediction(), clean[chosen], noise, sigma), sigma, scenes, clean[chosen], noise
            )
            for name, clean in halves.items()
        }


def pairs_of(task: Task) -> tuple[Tensor, Tensor]:
    """The user's pictures that show the concept, `[p, c, h, w]`, and their partners, in the same order.

    Raises:
        SettingError: there are no pictures, or one has no partner.
    """
    pictures = task.pictures
    if pictures is None or not len(pictures):
        raise SettingError(
            "There are no pairs of pictures to learn from.",
            "Connect images: those that show the concept first, then as many without it, in the same order.",
        )
    if len(pictures) % 2:
        raise SettingError(
            f"There are {len(pictures)} pictures, which do not make pairs.",
            "Connect as many that show the concept as without it, those that show it first.",
        )
    shown, gone = pictures.chunk(2)
    return shown, gone
