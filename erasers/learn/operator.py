"""A trainable context operator: one low-rank map of the text features, x -> x + U D x, shared by all layers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..model import Model
from ..result import ContextOperator
from ..sites import Family
from .trainables import CONTEXT, Trainables, blank


@dataclass(frozen=True)
class Operator:
    """Factors of the map, with the identity at the start; pooled features pass by unchanged."""

    def build(self, model: Model, family: Family, rank: int, generator: torch.Generator) -> Trainables:
        found, width = blank(), family.width
        down = (torch.rand(rank, width, generator=generator) * 2 - 1) / math.sqrt(width)
        found.tensors = {"down": down, "up": torch.zeros(width, rank)}

        def edit(features: Tensor) -> Tensor:
            if not found.on:
                return features
            own = features[..., :width]
            moved = own + own @ found.tensors["down"].to(own).T @ found.tensors["up"].to(own).T
            return torch.cat([moved, features[..., width:]], dim=-1)

        def parts(tensors: Mapping[str, Tensor]) -> Mapping[str, Mapping[str, Any]]:
            operator = ContextOperator(down=tensors["down"].clone(), up=tensors["up"].clone())
            return {CONTEXT: {family.stream: operator}}

        found.edit, found.parts = edit, parts
        return found
