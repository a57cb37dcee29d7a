"""What is trained: tensors beside a frozen model, which with them is the student and without them the teacher."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..algebra.hooks import Hook, Output
from ..model import Model
from ..sites import Family
from . import where as layers

ADAPTERS, TEXT, CONTEXT, MODULES = "adapters", "text_encoder", "context", "modules"
"""Parts of an eraser."""


@dataclass
class Trainables:
    """Tensors in training and where they act.

    Attributes:
        tensors: the leaves, by name.
        hooks: where they act, for `algebra.hooks.hooked`.
        parts: gives the eraser's parts that the tensors make, e.g. `{"adapters": {name: WeightEdit}}`.
        edit: what they do to the text features on their way into the denoiser.
        text: whether they act inside the text encoder.
        groups: names of tensors that belong together, by block; for penalties over blocks.
        outputs: what small modules added in the student's last pass, `[n, tokens, c]` by module name.
        on: whether they act at all.
    """

    tensors: dict[str, Tensor]
    hooks: list[tuple[nn.Module, Hook]]
    parts: Callable[[Mapping[str, Tensor]], Mapping[str, Mapping[str, Any]]]
    edit: Callable[[Tensor], Tensor] = lambda features: features
    text: bool = False
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    on: bool = True

    @contextmanager
    def off(self) -> Iterator[None]:
        """The model as it was before training, while the block runs."""
        before, self.on = self.on, False
        try:
            yield
        finally:
            self.on = before

    def switched(self, hook: Hook) -> Hook:
        """A hook that only acts while the trainables do."""
        return lambda module, args, output: hook(module, args, output) if self.on else None


class Parameterisation(Protocol):
    """A way to change a model."""

    def build(self, model: Model, family: Family, rank: int, generator: torch.Generator) -> Trainables:
        """Trainables that change nothing yet; FamilyError where the model has no place for them."""
        ...


def blank() -> Trainables:
    """Trainables without tensors, to be filled."""
    return Trainables({}, [], lambda tensors: {})


def chosen_layers(model: Model, family: Family, where: str, part: str) -> dict[str, nn.Module]:
    """The layers of the denoiser or the text encoder that `where` selects."""
    return layers.text_layers(model, where) if part == TEXT else layers.denoiser_layers(model, where, family)


def flat_shape(module: nn.Module) -> tuple[int, int]:
    """Shape of a layer's weight as a matrix, `(o, i)`; a kernel's places are columns."""
    if isinstance(module, nn.Conv2d):
        shape = tuple(module.weight.shape)
        return shape[0], math.prod(shape[1:])
    assert isinstance(module, layers.Linear)
    return module.out_features, module.in_features


def added(module: nn.Module, x: Tensor, delta: Tensor) -> Tensor:
    """What a layer's output gains when `delta` `[o, i]` is added to its weight, computed in x's dtype."""
    delta = delta.to(x)
    if isinstance(module, nn.Conv2d):
        kernel = delta.view(module.out_channels, -1, *module.kernel_size)
        return functional.conv2d(x, kernel, None, module.stride, module.padding, module.dilation, module.groups)
    return functional.linear(x, delta)


def added_low_rank(module: nn.Module, x: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """`added` for `delta = scale * up @ down`, with `down` `[r, i]` and `up` `[o, r]`, without making it."""
    inner = x
    if isinstance(module, nn.Conv2d):
        kernel = down.to(x).view(len(down), -1, *module.kernel_size)
        inner = functional.conv2d(x, kernel, None, module.stride, module.padding, module.dilation)
        return functional.conv2d(inner, up.to(x)[:, :, None, None] * scale)
    return functional.linear(functional.linear(inner, down.to(x)), up.to(x) * scale)


def plain_output(output: Output) -> Tensor:
    """The output of a layer that returns one tensor."""
    assert isinstance(output, Tensor)
    return output
