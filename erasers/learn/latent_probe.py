"""A small classifier of clean latents, with smooth activations, so that its gradients are of use.

Two convolutions that halve the map and one that keeps it, each with a softplus of sharpness 4 behind it, and a linear
reading of the mean over all places. Softplus in place of ReLU is EluCD's advice for classifiers whose gradients guide.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from ..target import Track, untracked

_WIDTHS, _STRIDES = (32, 64, 64), (2, 2, 1)
_SHARP = 4.0
_RATE, _BATCH = 1e-2, 16

LatentProbe = Callable[[Tensor], Tensor]
"""Latents `[n, c, h, w]` to logits `[n, classes]`."""


@torch.inference_mode(False)
@torch.enable_grad()
def fit_latent_probe(
    latents: Tensor, labels: Tensor, steps: int, generator: torch.Generator, track: Track = untracked
) -> LatentProbe:
    """Learn to tell classes of latents `[n, c, h, w]` apart, under noise of all strengths up to their own.

    Args:
        labels: `[n]`, from 0.
        track: goes through the steps; what it raises ends the training.
    """
    clean, labels = latents.clone(), labels.clone()
    weights = _fresh(clean.shape[1], int(labels.max()) + 1, generator)
    adam = torch.optim.Adam(weights, lr=_RATE)
    for _ in track(range(steps), steps):
        rows = torch.randint(len(clean), (_BATCH,), generator=generator)
        share = clean.std() * torch.rand(_BATCH, 1, 1, 1, generator=generator)
        noisy = clean[rows] + share * torch.randn(clean[rows].shape, generator=generator)
        loss = functional.cross_entropy(_logits(weights, noisy), labels[rows])
        adam.zero_grad()
        loss.backward()
        adam.step()
    known = [weight.detach() for weight in weights]
    return lambda x: _logits([weight.to(x) for weight in known], x)


def _fresh(channels: int, classes: int, generator: torch.Generator) -> list[Tensor]:
    weights, last = list[Tensor](), channels
    for width in _WIDTHS:
        weights += [torch.randn(width, last, 3, 3, generator=generator) * (9 * last) ** -0.5, torch.zeros(width)]
        last = width
    weights += [torch.randn(classes, last, generator=generator) * last**-0.5, torch.zeros(classes)]
    return [weight.requires_grad_() for weight in weights]


def _logits(weights: list[Tensor], x: Tensor) -> Tensor:
    for index, stride in enumerate(_STRIDES):
        weight, bias = weights[2 * index : 2 * index + 2]
        x = functional.softplus(functional.conv2d(x, weight, bias, stride, padding=1), beta=_SHARP)
    return x.mean((2, 3)) @ weights[-2].T + weights[-1]
