"""Latents of pictures with fresh noise: pictures that the user gave, or that the untouched model drew once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .law import Law, evenly
from .moment import CONCEPT, MAIN, NULL, Latents, Scene
from .rollout import in_parts, levels, roll
from .run import Run
from .scenes import by_turns
from .space import mixed


@dataclass(frozen=True)
class Clean:
    """Clean latents `[p, c, h, w]` with a scene each, and regions `[p, h, w]` or None."""

    latents: Tensor
    scenes: tuple[Scene, ...]
    regions: Tensor | None = None


@dataclass(frozen=True)
class Pictures:
    """Pictures of each scene's `role`, noised anew at every draw.

    Attributes:
        scenes: the prompts; pictures take them by turns of the names in them.
        role: what the pictures show.
        name: of the latents.
        count: pictures that are drawn where the user gave none; one of each name at least.
        steps, cfg: to draw them with.
        law: of the times.
        given: whether the user's pictures are used where there are any; they show the concept.
    """

    scenes: tuple[Scene, ...]
    role: str = CONCEPT
    name: str = MAIN
    count: int = 16
    steps: int = 25
    cfg: float = 6.0
    law: Law = evenly
    given: bool = False

    def draw(self, run: Run, rows: int) -> Mapping[str, Latents]:
        clean = self.clean(run)
        chosen = torch.randint(len(clean.latents), (rows,), generator=run.generator)
        latents = clean.latents[chosen]
        noise = torch.randn(latents.shape, generator=run.generator)
        sigma = run.model.level(self.law(rows, run.generator))
        x = mixed(run.model.prediction(), latents, noise, sigma)
        regions = None if clean.regions is None else clean.regions[chosen]
        scenes = tuple(clean.scenes[i] for i in chosen.tolist())
        return {self.name: Latents(x, sigma, scenes, latents, noise, regions=regions)}

    def clean(self, run: Run) -> Clean:
        """The pictures themselves; drawn at the first call."""
        return run.once(self, lambda: self._clean(run))

    def _clean(self, run: Run) -> Clean:
        task = run.task
        if self.given and task.pictures is not None:
            scenes = by_turns(self.scenes, len(task.pictures))[: len(task.pictures)]
            return Clean(task.pictures, scenes, task.regions)
        scenes = by_turns(self.scenes, self.count)
        generator = run.fork(f"pictures {self.name} {self.role}")
        noise = torch.randn(len(scenes), *run.model.latent_shape(), generator=generator)
        sigmas = levels(run.model, self.steps)
        parts = []
        todo = in_parts(len(scenes))
        for part in task.track(todo, len(todo)):
            some = scenes[part]
            said = run.features([scene[self.role] for scene in some])
            unsaid = run.features([scene.get(NULL, "") for scene in some])
            x = noise[part] * sigmas[0]
            parts.append(roll(run.model, run.teacher, x, sigmas, said, unsaid, self.cfg, track=task.track))
        return Clean(torch.cat(parts), scenes)
