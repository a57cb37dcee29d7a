"""LoRA: W + alpha / r * up @ down on chosen layers; of rank 1, SPM's membranes (Lyu et al., arXiv 2312.16145)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..algebra.hooks import Hook, Output
from ..model import Model
from ..result import WeightEdit
from ..sites import Family
from .trainables import ADAPTERS, Trainables, added_low_rank, blank, chosen_layers, flat_shape, plain_output


@dataclass(frozen=True)
class LowRank:
    """Adapters that start at zero: `up` is zero, `down` uniform as torch starts linear layers.

    Attributes:
        where: the layers (learn/where.py).
        alpha: the scale is alpha / rank; 0 for a scale of 1, whatever the rank.
        part: ADAPTERS for the denoiser, TEXT for the text encoder.
        smallest: groups of adapters with a smaller norm are left out of the eraser.
    """

    where: str
    alpha: float = 1.0
    part: str = ADAPTERS
    smallest: float = 0.0

    def build(self, model: Model, family: Family, rank: int, generator: torch.Generator) -> Trainables:
        found, scale = blank(), self.alpha / rank if self.alpha else 1.0
        found.text = self.part != ADAPTERS
        groups: dict[str, list[str]] = {}
        for name, module in chosen_layers(model, family, self.where, self.part).items():
            out, width = flat_shape(module)
            bound = 1 / math.sqrt(width)
            down = (torch.rand(rank, width, generator=generator) * 2 - 1) * bound
            pair = f"{name}.down", f"{name}.up"
            found.tensors |= {pair[0]: down, pair[1]: torch.zeros(out, rank)}
            groups.setdefault(name.rpartition(".ff.")[0] or name, []).extend(pair)
            found.hooks.append((module, found.switched(self._hook(found, name, scale))))
        found.groups = {name: tuple(names) for name, names in groups.items()}
        found.parts = partial(self._parts, scale, found.groups)
        return found

    def _hook(self, found: Trainables, name: str, scale: float) -> Hook:
        def add(module: nn.Module, args: tuple[Tensor, ...], output: Output) -> Tensor:
            down, up = found.tensors[f"{name}.down"], found.tensors[f"{name}.up"]
            return plain_output(output) + added_low_rank(module, args[0], down, up, scale).to(plain_output(output))

        return add

    def _parts(
        self, scale: float, groups: Mapping[str, tuple[str, ...]], tensors: Mapping[str, Tensor]
    ) -> Mapping[str, Mapping[str, Any]]:
        edits = {}
        for names in groups.values():
            norm = float(torch.stack([tensors[name].norm() for name in names]).norm())
            for down, up in zip(names[::2], names[1::2], strict=True) if norm >= self.smallest else ():
                owner = f"{down.removesuffix('.down')}.weight"
                edits[owner] = WeightEdit(down=tensors[down].clone(), up=tensors[up] * scale)
        return {self.part: edits}
