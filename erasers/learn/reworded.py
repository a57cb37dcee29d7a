"""Another sentence around the concept at every draw, whatever the picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from .moment import ANCHOR, CONCEPT, Latents, Scene
from .plan import Source
from .run import Run
from .scenes import scene


@dataclass(frozen=True)
class Reworded:
    """Latents of a source whose scenes hold bare names, which are put into sentences.

    Attributes:
        source: what draws.
        frames: sentences, with "{}" for the name; each row takes one at random.
    """

    source: Source
    frames: tuple[str, ...]

    def draw(self, run: Run, rows: int) -> Mapping[str, Latents]:
        return {name: self._reworded(latents, run.generator) for name, latents in self.source.draw(run, rows).items()}

    def _reworded(self, latents: Latents, generator: torch.Generator) -> Latents:
        chosen = torch.randint(len(self.frames), (len(latents.scenes),), generator=generator).tolist()
        scenes = (_framed(own, self.frames[i]) for own, i in zip(latents.scenes, chosen, strict=True))
        return replace(latents, scenes=tuple(scenes), known={})


def _framed(own: Scene, frame: str) -> Scene:
    return scene(*(frame.format(name) if name else "" for name in (own[CONCEPT], own[ANCHOR])))
