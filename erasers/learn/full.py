"""Full differences of chosen layers' weights: as free as training the weights themselves, which stay untouched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..algebra.hooks import Hook, Output
from ..model import Model
from ..result import WeightEdit
from ..sites import Family
from .trainables import ADAPTERS, Trainables, added, blank, chosen_layers, flat_shape, plain_output

_EXACT = 1e-6
"""Singular values below this share of the largest are rounding."""


@dataclass(frozen=True)
class Full:
    """A dense difference for every chosen layer, zero at the start.

    Attributes:
        where: the layers (learn/where.py).
        part: ADAPTERS for the denoiser, TEXT for the text encoder.
    """

    where: str
    part: str = ADAPTERS

    def build(self, model: Model, family: Family, rank: int, generator: torch.Generator) -> Trainables:
        found = blank()
        found.text = self.part != ADAPTERS
        for name, module in chosen_layers(model, family, self.where, self.part).items():
            found.tensors[name] = torch.zeros(flat_shape(module))
            found.hooks.append((module, found.switched(self._hook(found, name))))
        found.parts = self._parts
        return found

    def _hook(self, found: Trainables, name: str) -> Hook:
        def add(module: nn.Module, args: tuple[Tensor, ...], output: Output) -> Tensor:
            return plain_output(output) + added(module, args[0], found.tensors[name]).to(plain_output(output))

        return add

    def _parts(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Mapping[str, Any]]:
        return {self.part: {f"{name}.weight": stored(tensor) for name, tensor in tensors.items()}}


def stored(delta: Tensor) -> WeightEdit:
    """A difference `[o, i]` in the smallest exact form: as factors where its rank makes them smaller."""
    if not bool(delta.any()) or not _is_low_rank(delta):
        return WeightEdit(dense=delta.clone())
    left, values, right = torch.linalg.svd(delta.double(), full_matrices=False)
    kept = int((values > _EXACT * values[0]).sum())
    if kept * sum(delta.shape) >= delta.numel():
        return WeightEdit(dense=delta.clone())
    return WeightEdit(down=right[:kept].to(delta), up=(left[:, :kept] * values[:kept]).to(delta))


def _is_low_rank(delta: Tensor) -> bool:
    """Whether a projection on few random directions catches all of a matrix, so that its decomposition pays."""
    most = max(1, delta.numel() // sum(delta.shape))
    seeds = torch.randn(delta.shape[1], most, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    basis = torch.linalg.qr(delta.double() @ seeds)[0]
    rest = delta.double() - basis @ (basis.T @ delta.double())
    return float(rest.norm()) <= _EXACT * float(delta.double().norm())
