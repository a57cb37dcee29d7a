"""Latents that are moved by the gradient of where words look: what guards of this kind share.

At each step the network looks at the prompt once more, with gradients, and the latents are moved before the step:

    x <- x - alpha grad_x L(A)

with A how much attention the prompt's own tokens get at each place of the layers that are nearest to a quarter of the
latents' size, as a mean over these layers and their heads. L is each guard's own.

Published for latents of unit variance, z = x / sqrt(1 + sigma^2) where x is in units of sigma: there a step of alpha on
z is one of alpha (1 + sigma^2) on x. Latents of flow models are taken as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .learn.space import FLOW, wide
from .model import TextTower, Token
from .spec import Parameter
from .task import Task
from .window import Window

Loss = Callable[[Tensor, Tensor, dict[str, Tensor]], Tensor]
"""A loss of maps `[t, h, w]` of one picture, of which tokens are named `[t]` bool, and of what it left at steps before;
to remember something, it puts it there."""


@dataclass(frozen=True)
class Words:
    """A prompt's own tokens.

    Attributes:
        places: among all its tokens, chunk behind chunk.
        named: which of them are of a concept's name.
        tokens: how many there are, padding included.
    """

    places: tuple[int, ...]
    named: tuple[bool, ...]
    tokens: int


@dataclass(frozen=True, eq=False)
class Nudge:
    """How latents are moved.

    Attributes:
        tower: the text encoder.
        names: of the concepts.
        loss: L.
        kind: what the model predicts (learn/space.py).
        window: when it moves them.
        alpha: length of the steps at the start of sampling.
        rounds: how many gradients are taken at each step of sampling.
    """

    tower: TextTower
    names: tuple[str, ...]
    loss: Loss
    kind: str
    window: Window
    alpha: float
    rounds: int

    def read(self, chunks: Sequence[Sequence[Token]]) -> Words | None:
        """The prompt's own tokens; None where no name stands among them."""
        return read_words(self.tower, self.names, chunks)

    def moved(self, x: Tensor, sigma: Tensor, gradient: Tensor, percent: float) -> Tensor:
        """Latents after a step; it gets shorter by sqrt(1 - percent / 2), as published."""
        size = self.alpha * (1 - percent / 2) ** 0.5
        level = torch.ones_like(sigma) if self.kind == FLOW else 1 + sigma**2
        return x - size * wide(level, x) * gradient


def read_words(tower: TextTower, names: Sequence[str], chunks: Sequence[Sequence[Token]]) -> Words | None:
    """A prompt's own tokens; None where no name stands among them."""
    places, named, offset = list[int](), list[bool](), 0
    for chunk in chunks:
        spans = [span for name in names for span in tower.spans(chunk, name)]
        own = tower.own(chunk)
        places += [offset + place for place in own]
        named += [any(place in span for span in spans) for place in own]
        offset += len(chunk)
    return Words(tuple(places), tuple(named), offset) if any(named) else None


def nudge_of(task: Task, names: tuple[str, ...], loss: Loss, window: Window, alpha: float, rounds: int) -> Nudge:
    """For a task's model."""
    return Nudge(task.tower(), names, loss, task.loaded().prediction(), window, alpha, rounds)


def nudge_settings(alpha: float, end: float, published: str) -> tuple[Parameter, ...]:
    """How far latents are moved, how often, and until when."""
    return (
        Parameter(
            "alpha",
            alpha,
            f"How far the latents are moved at each step, 0 to 1000. Start at {alpha:g}, {published}; 0 changes "
            "nothing, too much leaves artefacts.",
            maximum=1000.0,
            step=0.5,
        ),
        Parameter(
            "end",
            end,
            f"Share of sampling at which it ends, 0.01 to 1. Start at {end:g}, {published}.",
            minimum=0.01,
        ),
        Parameter(
            "rounds",
            1,
            "Gradients that are taken at each step, 1 to 20. Each costs two to three predictions. Start at 1.",
            minimum=1,
            maximum=20,
            step=1,
        ),
    )
