"""How much of each of several erasers acts in each block of a model (aTLAS, Zhang et al., NeurIPS 2024, arXiv
2407.02880): one number per eraser and block, and nothing else is trained.

    W_l + sum_i lambda_i,b(l) D_i,l
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..algebra.edits import block_of, factors, scaled, summed_by_name, summed_operators
from ..algebra.hooks import Hook, Output
from ..errors import SettingError
from ..model import Model
from ..result import ContextOperator, Eraser, WeightEdit
from ..sites import Family
from .plan import Penalty
from .trainables import ADAPTERS, CONTEXT, Trainables, added_low_rank, blank, plain_output

LOWEST, HIGHEST = -1.0, 2.0
"""Bounds of a coefficient, so that few prompts cannot drive it away."""
_FEATURES = "text features"


@dataclass(frozen=True)
class Coefficients:
    """Coefficients that start at the erasers' own strengths; operators on the text features count as a block.

    Attributes:
        erasers: what is weighed, each at its strength.

    Raises:
        SettingError: an eraser has parts that no block holds.
    """

    erasers: Sequence[Eraser]

    def __post_init__(self) -> None:
        for eraser in self.erasers:
            sparse = any(edit.indices is not None for edit in eraser.adapters.values())
            if eraser.text_encoder or eraser.modules or sparse:
                raise SettingError(
                    f"The eraser made by {eraser.recipe.method} cannot be weighed block by block.",
                    "Choose mode sum or gated.",
                )

    def build(self, model: Model, family: Family, rank: int, generator: torch.Generator) -> Trainables:
        found = blank()
        blocks = dict.fromkeys(block_of(name) for eraser in self.erasers for name in eraser.adapters)
        if any(family.stream in eraser.context for eraser in self.erasers):
            blocks[_FEATURES] = None
        found.tensors = {block: torch.ones(len(self.erasers)) for block in blocks}
        for name in dict.fromkeys(name for eraser in self.erasers for name in eraser.adapters):
            layer = re.escape(name.removesuffix(".weight"))
            module = next(iter(model.modules(f"^{layer}$").values()))
            parts = [(i, factors(e.adapters[name])) for i, e in enumerate(self.erasers) if name in e.adapters]
            found.hooks.append((module, found.switched(_weighed(found, block_of(name), parts))))
        operators = [(i, e.context[family.stream]) for i, e in enumerate(self.erasers) if family.stream in e.context]

        def edit(features: Tensor) -> Tensor:
            if not found.on or not operators:
                return features
            own = features[..., : family.width]
            weights = found.tensors[_FEATURES].clamp(LOWEST, HIGHEST)
            moves = (weights[i].to(own.device) * (o.to(own.device).apply(own) - own) for i, o in operators)
            return torch.cat([own + sum(moves), features[..., family.width :]], dim=-1)

        found.edit, found.parts = edit, partial(self._parts, family.stream)
        return found

    def _parts(self, stream: str, tensors: Mapping[str, Tensor]) -> Mapping[str, Mapping[str, Any]]:
        weights = {block: own.clamp(LOWEST, HIGHEST).tolist() for block, own in tensors.items()}
        adapters: list[dict[str, WeightEdit]] = [
            {name: scaled(edit, weights[block_of(name)][i]) for name, edit in eraser.adapters.items()}
            for i, eraser in enumerate(self.erasers)
        ]
        context: dict[str, ContextOperator] = {}
        for part in dict.fromkeys(name for eraser in self.erasers for name in eraser.context):
            own = [(i, e.context[part]) for i, e in enumerate(self.erasers) if part in e.context]
            # Pooled features take no part in training, and keep their strengths.
            context[part] = summed_operators(
                [o.scaled(weights[_FEATURES][i] if part == stream else 1.0) for i, o in own]
            )
        return {ADAPTERS: summed_by_name(adapters), CONTEXT: context}


def near_one(weight: float) -> Penalty:
    """A penalty on how far coefficients are from 1, as a mean square times a weight."""

    def penalty(trainables: Trainables) -> Tensor:
        return weight * torch.cat([own - 1 for own in trainables.tensors.values()]).square().mean()

    return penalty


def _weighed(found: Trainables, block: str, parts: Sequence[tuple[int, tuple[Tensor, Tensor]]]) -> Hook:
    def add(module: nn.Module, args: tuple[Tensor, ...], output: Output) -> Tensor:
        x, weights = args[0], found.tensors[block].clamp(LOWEST, HIGHEST)
        downs = torch.cat([down for _, (down, _) in parts])
        ups = torch.cat([up * weights[i].to(up) for i, (_, up) in parts], dim=1)
        return plain_output(output) + added_low_rank(module, x, downs, ups, 1.0).to(plain_output(output))

    return add
