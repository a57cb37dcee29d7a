"""The loss that attacks on a denoiser share: how far its noise prediction is from a goal."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..model import Model


@dataclass(frozen=True)
class NoisedLatents:
    """Latents with the noise that is mixed into them.

    Attributes:
        latents, noise: `[n, c, h, w]`.
        percent: `[n]`, how far sampling has come, 0 (all noise) to 1.
    """

    latents: Tensor
    noise: Tensor
    percent: Tensor

    def predict(self, model: Model, context: Tensor, cfg: float = 1.0) -> Tensor:
        """What `model` predicts for text features `[n, tokens, d]`, `[n, c, h, w]`."""
        return model.predict_noise(self.latents, self.noise, self.percent, context, cfg)


def noised(
    latents: Tensor, generator: torch.Generator, low: float = 0.0, high: float = 1.0, percent: float | None = None
) -> NoisedLatents:
    """Fresh noise for latents, at a time of its own for each, drawn evenly from `low` to `high`, or at `percent`."""
    noise = torch.randn(latents.shape, generator=generator)
    drawn = torch.rand(len(latents), generator=generator) * (high - low) + low
    return NoisedLatents(latents, noise, drawn if percent is None else torch.full_like(drawn, percent))


def row_errors(seen: Tensor, goal: Tensor) -> Tensor:
    """Mean squared error of each prediction `[n, c, h, w]`, `[n]`."""
    return (seen - goal).square().flatten(1).mean(1)
