"""Denoising of pictures whose sentences say where the concept is: Geom-Erasing's removal from training data.

The tokens of places (learn/geometry.py) learn beside the student and stay behind in the run's memory: without them a
prompt says nothing of the concept, which the student has learned to draw where they tell it to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .geometry import Grid, region_weights, sentence
from .inversion import first_vectors
from .moment import ANCHOR, CONCEPT, MAIN, Ask, Features, Latents, Moment
from .own_adam import OwnAdam
from .plan import ERASE
from .run import Run
from .space import own_space
from .spent import carried

PLACES = "places"
"""Name of the tokens in memory."""
_DECAY = 0.01


@dataclass(frozen=True)
class Located:
    """mean(w * (S(x, caption + name + tokens of the places) - truth)^2), for the student and for the tokens.

    Pictures without the concept have their caption alone, and weights of 1.

    Attributes:
        grid: the places.
        alpha: weight of a spot outside the concept against one inside.
        rate: of the tokens' AdamW.
        caption, name: roles of what a picture shows besides, and of the concept's name.
        at: name of the latents; they carry `clean` and `regions`.
        weight: factor in the loss.
        aim: ERASE or KEEP.
    """

    grid: Grid
    alpha: float
    rate: float
    caption: str = ANCHOR
    name: str = CONCEPT
    at: str = MAIN
    weight: float = 1.0
    aim: str = ERASE

    def asks(self) -> Sequence[Ask]:
        return ()

    def loss(self, run: Run, moment: Moment, seen: Mapping[Ask, Tensor]) -> Tensor:
        latents, adam = moment[self.at], OwnAdam(PLACES, self.rate, decay=_DECAY)
        leaves = adam.leaves(run, lambda: {"vectors": first_vectors(run.model.tower(), "", self.grid.count)})
        loss = self._error(run, latents, leaves["vectors"])
        trained = [tensor for tensor in run.trainables.tensors.values() if tensor.requires_grad]
        if not loss.requires_grad:
            return loss
        # The tokens' gradient comes of the same pass as the student's.
        own, *grads = torch.autograd.grad(loss, [leaves["vectors"], *trained], allow_unused=True)
        adam.step(run, leaves, {} if own is None else {"vectors": own})
        return carried(loss, trained, grads)

    def _error(self, run: Run, latents: Latents, vectors: Tensor) -> Tensor:
        assert latents.clean is not None
        assert latents.regions is not None
        tower, rows = run.model.tower(), []
        for scene, region in zip(latents.scenes, latents.regions, strict=True):
            cells = self.grid.touched(region)
            rows.append(sentence(tower, scene[self.caption], scene[self.name] if cells else "", vectors[cells]))
        said = run.student(latents, Features(tower.encode(rows)[0]))
        truth = own_space(run.model.prediction(), latents.x, latents.sigma, latents.clean)
        weights = region_weights(latents.regions, self.alpha)[:, None]
        return ((said - truth).square() * weights).mean()
