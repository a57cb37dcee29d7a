"""Keeps gradients away from the first token's keys and values (Kumari et al., arXiv 2303.13516).

The start token's features are the same whatever the prompt. A gradient through them moves every prompt alike, so
training on one concept would move all the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..algebra.hooks import Output
from ..errors import FamilyError
from ..model import Model
from ..sites import Family
from .trainables import Parameterisation, Trainables, plain_output
from .where import KEYS_VALUES, PATTERNS


@dataclass(frozen=True)
class FirstTokenStill:
    """A parameterisation whose cross-attention gives the first token no gradients; what it predicts is the same.

    Attributes:
        inner: the parameterisation itself.
    """

    inner: Parameterisation

    def build(self, model: Model, family: Family, rank: int, generator: torch.Generator) -> Trainables:
        found = self.inner.build(model, family, rank, generator)
        modules = model.modules(PATTERNS[KEYS_VALUES])
        if not modules:
            raise FamilyError(
                "This model has no cross-attention, so no first token's keys and values.",
                "Let gradients pass the first token, or choose another recipe.",
            )
        # Hooks of one module run in order, so these see what the inner ones have added.
        found.hooks.extend((module, _still) for module in modules.values())
        return found


def _still(_module: nn.Module, _args: tuple[Tensor, ...], output: Output) -> Tensor:
    states = plain_output(output)
    return torch.cat([states[:, :1].detach(), states[:, 1:]], dim=1)
