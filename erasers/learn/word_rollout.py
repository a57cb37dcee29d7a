"""Rollouts under features that no prompt has: those of learned vectors; and times from the middle of sampling."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from .inversion import Word
from .moment import AVERAGE, MAIN, TEACHER, Features, Latents, Scene
from .pictures import Law
from .rollout import Path, levels, roll
from .run import Run

_ROWS = 8
"""Trajectories that are rolled out at a time."""
_DRAWN, _MIDDLE = 5, 2


def middling(count: int, generator: torch.Generator) -> Tensor:
    """Times from Beta(3, 3), as the middle one of five that are even; it is its own mirror image."""
    return torch.rand(count, _DRAWN, generator=generator).sort(1).values[:, _MIDDLE]


@dataclass(frozen=True)
class WordRollout:
    """Latents that are denoised under a word's prompts up to some level; see `Rollout`, whose counterpart it is.

    Attributes:
        word: gives the features.
        scenes: the prompts; each trajectory takes one.
        cfg: guidance scale, against the empty prompt.
        steps: N, steps of a whole rollout.
        who: TEACHER, STUDENT or AVERAGE; only the teacher's are kept.
        kept: trajectories of the teacher that are kept and drawn from; 0 to roll out anew at every step.
        law: of how far a rollout goes, 0 to 1.
    """

    word: Word
    scenes: tuple[Scene, ...]
    cfg: float = 3.0
    steps: int = 50
    who: str = TEACHER
    kept: int = 16
    law: Law = middling

    def draw(self, run: Run, rows: int) -> Mapping[str, Latents]:
        places = (self.law(rows, run.generator) * self.steps).long().clamp(max=self.steps - 1)
        if self.who == TEACHER and self.kept:
            path = run.once(self, lambda: self._trajectories(run))
            chosen = torch.randint(len(path.scenes), (rows,), generator=run.generator)
            return {MAIN: path.at(chosen, places)}
        scenes = tuple(self.scenes[i] for i in torch.randint(len(self.scenes), (rows,), generator=run.generator))
        noise = torch.randn(rows, *run.model.latent_shape(), generator=run.generator)
        return {MAIN: self._roll(run, noise, scenes, int(places.max())).at(torch.arange(rows), places)}

    def _trajectories(self, run: Run) -> Path:
        noise = torch.randn(self.kept, *run.model.latent_shape(), generator=run.fork("word rollout"))
        scenes = tuple(self.scenes[i % len(self.scenes)] for i in range(self.kept))
        starts = range(0, self.kept, _ROWS)
        return Path.joined(
            [self._roll(run, noise[i : i + _ROWS], scenes[i : i + _ROWS], self.steps - 1) for i in starts]
        )

    def _roll(self, run: Run, noise: Tensor, scenes: tuple[Scene, ...], last: int) -> Path:
        """The latents of every step up to `last`."""
        sigmas, steps = levels(run.model, self.steps), list[Tensor]()

        def keep(x: Tensor, _own: tuple[Tensor, Tensor]) -> None:
            steps.append(x)

        said = self.word.features(run, scenes)
        look = run.teacher if self.who == TEACHER else run.student
        with torch.no_grad(), run.averaged() if self.who == AVERAGE else nullcontext():
            unsaid: Features = run.features([""] * len(noise), self.who)
            roll(run.model, look, noise * sigmas[0], sigmas[: last + 2], said, unsaid, self.cfg, keep)
        return Path(torch.stack(steps, 1), sigmas[: len(steps)], noise=noise, scenes=scenes, known={})
