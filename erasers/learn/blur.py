"""Latents that have lost their fine detail."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from .moment import Latents
from .plan import Source
from .run import Run


@dataclass(frozen=True)
class Blurred:
    """A source's latents under a Gaussian of `kernel` places; their noise is blurred too, and so below its level.

    Attributes:
        source: gives the latents.
        kernel: an odd number of places; 1 leaves them as they are.
    """

    source: Source
    kernel: int

    def draw(self, run: Run, rows: int) -> Mapping[str, Latents]:
        drawn = self.source.draw(run, rows)
        if self.kernel == 1:
            return drawn
        # What the teacher said is true of the latents as they were.
        return {name: replace(own, x=blurred(own.x, self.kernel), known={}) for name, own in drawn.items()}


def blurred(x: Tensor, kernel: int) -> Tensor:
    """Pictures `[n, c, h, w]` under a Gaussian of `kernel` places, whose width goes with them; edges are mirrored."""
    spread = 0.3 * ((kernel - 1) / 2 - 1) + 0.8
    places = torch.arange(kernel).to(x) - kernel // 2
    row = (-places.square() / (2 * spread**2)).exp()
    row = row / row.sum()
    channels, pad = x.shape[1], kernel // 2
    padded = functional.pad(x, [pad] * 4, mode="reflect")
    return functional.conv2d(padded, (row[:, None] * row).expand(channels, 1, -1, -1), groups=channels)
