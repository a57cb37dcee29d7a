"""Where in a picture the concept is, by the untouched model's own attention (Receler, arXiv 2311.17717).

Maps of the concept's tokens under its prompt, averaged over tokens, heads and the layers whose size is nearest to a
quarter of the latents' (16 x 16 at 512 pixels), stretched to 0..1 and cut at a threshold.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from .attention import grid, watching
from .moment import CONCEPT, TEACHER, Ask, Latents
from .places import token_mask
from .run import Run

Region = Callable[[Run, Latents], Tensor]
"""Finds where the concept is in latents: `[n, h, w]` in 0..1, of any size."""
_QUARTER = 16
"""Latents have this many pixels for one of the wanted map."""


@dataclass(frozen=True)
class OwnMaps:
    """Finds the concept by the teacher's attention to its name (a `Region`).

    Attributes:
        threshold: share of a map's range above which a pixel belongs to the concept.
    """

    threshold: float = 0.1

    @torch.no_grad()
    def __call__(self, run: Run, latents: Latents) -> Tensor:
        heat = concept_heat(run, latents)
        low, high = heat.amin((1, 2), keepdim=True), heat.amax((1, 2), keepdim=True)
        inside = (heat - low) > self.threshold * (high - low)
        return inside.float()


@torch.no_grad()
def concept_heat(run: Run, latents: Latents) -> Tensor:
    """The teacher's mean attention to the concept's name, `[n, h, w]`."""
    features = run.of_role(Ask(TEACHER, CONCEPT), latents)
    with watching(run) as attention:
        run.teacher(latents, features)
    maps, (height, width) = attention.maps(), latents.x.shape[-2:]
    wanted = math.log(height * width / _QUARTER)
    size = min((own.shape[2] for own in maps.values()), key=lambda pixels: abs(math.log(pixels) - wanted))
    near = [own.mean(1) for own in maps.values() if own.shape[2] == size]
    tokens = token_mask(run.task, latents.scenes).to(near[0])
    heat = torch.einsum("npt,nt->np", torch.stack(near).mean(0), tokens / tokens.sum(1, keepdim=True))
    return heat.unflatten(1, grid(size, height, width))


def at_size(region: Tensor, pixels: int, height: int, width: int) -> Tensor:
    """A region `[n, h, w]` at a layer's size, 0 or 1, `[n, pixels]`; the nearest value above one half counts."""
    resized = functional.interpolate(region[:, None], grid(pixels, height, width), mode="nearest")
    return (resized > 0.5).float().flatten(1)
