"""Latents that show nothing: even random numbers in place of pictures, where there are none of the concept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from .law import Law, evenly
from .moment import MAIN, Latents, Scene
from .run import Run
from .space import mixed


@dataclass(frozen=True)
class Uniform:
    """Numbers drawn evenly from 0 to 1, new at every draw, with noise mixed in.

    Attributes:
        scenes: the prompts; each row takes one.
        law: of the times.
    """

    scenes: tuple[Scene, ...]
    law: Law = evenly

    def draw(self, run: Run, rows: int) -> Mapping[str, Latents]:
        chosen = torch.randint(len(self.scenes), (rows,), generator=run.generator).tolist()
        shape = rows, *run.model.latent_shape()
        clean, noise = torch.rand(shape, generator=run.generator), torch.randn(shape, generator=run.generator)
        sigma = run.model.level(self.law(rows, run.generator))
        x = mixed(run.model.prediction(), clean, noise, sigma)
        return {MAIN: Latents(x, sigma, tuple(self.scenes[i] for i in chosen), clean, noise)}
