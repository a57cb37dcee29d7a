"""Receler's erasers: a bottleneck beside every cross-attention, out + U gelu(D out) (arXiv 2311.17717)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...kernels.reference.bottleneck import bottleneck
from ..algebra.hooks import Hook, Output, states_of
from ..errors import FamilyError
from ..model import Model
from ..result import Bottleneck
from ..sites import Family
from .trainables import MODULES, Trainables, blank
from .where import Linear


@dataclass(frozen=True)
class Bottlenecks:
    """A bottleneck after every cross-attention of the denoiser; its last layer is zero at the start."""

    def build(self, model: Model, family: Family, rank: int, generator: torch.Generator) -> Trainables:
        found, names = blank(), set[str]()
        for name, module in sorted(model.modules(r"\.attn2\.to_out\.0$").items()):
            assert isinstance(module, Linear)
            owner, width = name.removesuffix(".to_out.0"), module.out_features
            bounds = 1 / math.sqrt(width)
            down = (torch.rand(rank, width, generator=generator) * 2 - 1) * bounds
            own = {"down": down, "down_bias": torch.zeros(rank), "up": torch.zeros(width, rank)}
            found.tensors |= {f"{owner}.{key}": value for key, value in own.items()}
            found.tensors[f"{owner}.up_bias"] = torch.zeros(width)
            found.hooks.append((module, found.switched(self._hook(found, owner))))
            names.add(owner)
        if not names:
            raise FamilyError("This model has no cross-attention to put an eraser behind.", "Choose another recipe.")

        def parts(tensors: Mapping[str, Tensor]) -> Mapping[str, Mapping[str, Any]]:
            return {MODULES: {name: Bottleneck(**tensors_of(tensors, name)) for name in sorted(names)}}

        found.parts = parts
        return found

    def _hook(self, found: Trainables, owner: str) -> Hook:
        def add(_module: nn.Module, _args: tuple[Tensor, ...], output: Output) -> Tensor:
            states = states_of(output)
            found.outputs[owner] = bottleneck(states, **tensors_of(found.tensors, owner))
            return states + found.outputs[owner]

        return add


def tensors_of(tensors: Mapping[str, Tensor], owner: str) -> dict[str, Tensor]:
    """The tensors of one bottleneck by their names in it."""
    return {key: tensors[f"{owner}.{key}"] for key in ("down", "down_bias", "up", "up_bias")}
