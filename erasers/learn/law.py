"""Laws of the times that latents are taken at: how far sampling has come, from 0 (all noise) to 1."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Law = Callable[[int, torch.Generator], Tensor]
"""Draws `[n]` times in 0 to 1."""
_DRAWN, _MIDDLE = 5, 2


def evenly(count: int, generator: torch.Generator) -> Tensor:
    """Every time alike."""
    return torch.rand(count, generator=generator)


def middling(count: int, generator: torch.Generator) -> Tensor:
    """Times from Beta(3, 3), as the middle one of five that are even; it is its own mirror image."""
    return torch.rand(count, _DRAWN, generator=generator).sort(1).values[:, _MIDDLE]
