"""Pictures, captions and batches that the training stages share."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

import torch
from torch import Tensor

from ..drawing import render
from ..grammar import Scene, draw_scene


def draw_pictures(count: int, seed: int) -> tuple[list[Scene], Tensor]:
    """Draw training scenes and their pictures.

    Returns:
        `count` scenes and `[count, 3, 128, 128]` uint8.
    """
    rng = random.Random(seed)
    scenes = [draw_scene(rng) for _ in range(count)]
    pictures = torch.empty(count, 3, 128, 128, dtype=torch.uint8)
    for start in range(0, count, 256):
        batch = render(scenes[start : start + 256], rng)
        pictures[start : start + 256] = (batch * 255).round().to(torch.uint8)
    return scenes, pictures


def to_model_range(pictures: Tensor) -> Tensor:
    """uint8 0..255 to float32 -1..1."""
    return pictures.float() / 127.5 - 1


def shuffled_batches(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Index batches `[size]`, epoch after epoch, without end."""
    while True:
        order = torch.randperm(count, generator=generator)
        yield from order[: count // size * size].view(-1, size)


def cosine_rate(step: int, steps: int, peak: float, warmup: int = 50) -> float:
    """Learning rate with a linear start and a cosine end at zero."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def psnr(error: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pictures in -1..1 with mean squared error `error`."""
    return -10 * math.log10(error.item() / 4)
