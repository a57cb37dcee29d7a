"""What one training step looks at: noised latents, the prompts in their roles, and the predictions asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ..task import EncodedPrompt

NULL, CONCEPT, ANCHOR, HELD, ATTACKED = "null", "concept", "anchor", "held", "attacked"
"""Roles: the empty prompt, what is erased, what stands for it, a prompt to keep, the concept under attack."""
TEACHER, STUDENT, STILL, AVERAGE = "teacher", "student", "still", "average"
"""Who predicts: the model before training, the model in training, the latter without gradients, and its moving
average."""
MAIN = "x"
"""The name of a step's latents where there is one set of them."""

Scene = Mapping[str, str]
"""Prompts by role; the empty prompt need not be named."""


class Ask(NamedTuple):
    """A prediction that a term needs: who makes it, for which role, on which of the step's latents."""

    source: str
    role: str
    at: str = MAIN


@dataclass(frozen=True)
class Features:
    """What the denoiser is given of prompts: states `[n, tokens, d]`, and pooled features `[n, p]` or None."""

    states: Tensor
    pooled: Tensor | None = None

    @classmethod
    def of(cls, prompts: Sequence[EncodedPrompt]) -> Features:
        """Features of encoded prompts, one row each."""
        pooled = [prompt.pooled for prompt in prompts if prompt.pooled is not None]
        return cls(torch.stack([prompt.states for prompt in prompts]), torch.stack(pooled) if pooled else None)

    @classmethod
    def joined(cls, parts: Sequence[Features]) -> Features:
        """Rows of several, one after the other."""
        pooled = [part.pooled for part in parts if part.pooled is not None]
        return cls(torch.cat([part.states for part in parts]), torch.cat(pooled) if pooled else None)


@dataclass(frozen=True)
class Latents:
    """Noised latents of one step.

    Attributes:
        x: `[n, c, h, w]`, without gradients.
        sigma: `[n]`, the noise level of each.
        scenes: the prompts that belong to each row.
        clean: `[n, c, h, w]`, what noise was mixed into, or None.
        noise: `[n, c, h, w]`, that noise, or the one that a rollout started from.
        known: the teacher's predictions for these latents by role, where making the latents gave them.
        regions: `[n, h, w]` in 0..1, where in each picture the concept is, if that is known.
    """

    x: Tensor
    sigma: Tensor
    scenes: tuple[Scene, ...]
    clean: Tensor | None = None
    noise: Tensor | None = None
    known: Mapping[str, Tensor] = field(default_factory=dict)
    regions: Tensor | None = None


Moment = Mapping[str, Latents]
"""A step's latents by name."""
