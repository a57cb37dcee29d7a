"""Drawing many demo-world pictures outside any host, through diffusers: for tables, sweeps, tests and commands.

Needs the optional packages diffusers and transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..pipeline import CPU, Pipeline
from ..pipeline_parts import load_parts
from .world import CFG, STEPS, WEIGHTS, judge

_BATCH = 50


class Gallery(Pipeline):
    """The demo world's parts as diffusers loads them, its pictures drawn in bfloat16, its own judge to see with."""

    def __init__(
        self,
        folder: Path = WEIGHTS,
        steps: int = STEPS,
        cfg: float = CFG,
        batch: int = _BATCH,
        device: torch.device = CPU,
    ) -> None:
        super().__init__(load_parts(folder), steps, cfg, batch, device, bf16=True)

    @property
    def sight(self) -> Sight:
        return Sight(self)

    def draw(self, prompts: Sequence[str], seed: int = 0, steps: int = STEPS, cfg: float = CFG) -> Tensor:
        """Draw one picture per prompt.

        Args:
            prompts: n prompts; picture i has noise of its own, the same for the same seed and i.

        Returns:
            `[n, 3, 128, 128]` float32 in 0..1.
        """
        return self.decode(self.model.sample(list(prompts), steps, cfg, seed))


class Sight:
    """The demo world's image/text pair: the judge's projection beside the text encoder's pooled state."""

    def __init__(self, gallery: Gallery) -> None:
        self.gallery = gallery

    def embed_latents(self, latents: Tensor) -> Tensor:
        """`[n, 4, 16, 16]` to `[n, e]`."""
        return self.embed_images(self.gallery.decode(latents))

    def embed_images(self, images: Tensor) -> Tensor:
        """`[n, 3, h, w]` in 0..1 to `[n, e]`."""
        return judge()(images)[1]

    def embed_text(self, prompts: list[str]) -> Tensor:
        """Prompts to `[n, e]`."""
        return self.gallery.model.tower().run(prompts)[1]
