"""The eraser: what every method produces and every consumer accepts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..kernels.reference.low_rank import add_low_rank
from .errors import FamilyError, NumericsError
from .spec import Value


@dataclass(frozen=True)
class ContextOperator:
    """An affine map of text features, x -> x + s * (M x + b), applied to every token.

    `M = up @ down` in factors while their rank is below the width, else in its dense form.

    Attributes:
        down: `[r, d]` float32, or None.
        up: `[d, r]` float32, or None.
        dense: `[d, d]` float32, instead of the factors.
        bias: `[d]` float32, or None.
    """

    down: Tensor | None = None
    up: Tensor | None = None
    dense: Tensor | None = None
    bias: Tensor | None = None

    def __post_init__(self) -> None:
        shapes = {name: tuple(tensor.shape) for name, tensor in self.tensors().items()}
        width, matches = 0, False
        if self.dense is None and self.down is not None and self.up is not None and self.down.ndim == 2:
            rank, width = self.down.shape
            matches = tuple(self.up.shape) == (width, rank)
        elif self.dense is not None and self.down is None and self.up is None and self.dense.ndim == 2:
            width = self.dense.shape[0]
            matches = tuple(self.dense.shape) == (width, width)
        if not matches or (self.bias is not None and tuple(self.bias.shape) != (width,)):
            raise NumericsError(
                f"A context operator cannot have tensors of shapes {shapes}.",
                "It needs down [r, d] and up [d, r], or dense [d, d]; bias, if any, is [d].",
            )
        for name, tensor in self.tensors().items():
            if not bool(torch.isfinite(tensor).all()):
                raise NumericsError(
                    f"The context operator's '{name}' holds values that are not finite.",
                    "Raise the ridge, or check the text encoder's precision.",
                )

    @property
    def width(self) -> int:
        """Features per token, d."""
        matrix = self.dense if self.dense is not None else self.down
        assert matrix is not None
        return matrix.shape[1]

    @property
    def rank(self) -> int:
        """Rank of the factors, or d for the dense form."""
        return self.width if self.down is None else self.down.shape[0]

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that are there, by name."""
        parts = {"down": self.down, "up": self.up, "dense": self.dense, "bias": self.bias}
        return {name: tensor for name, tensor in parts.items() if tensor is not None}

    def to(self, device: torch.device) -> ContextOperator:
        """The same operator on another device."""
        return ContextOperator(**{name: tensor.to(device) for name, tensor in self.tensors().items()})

    def apply(self, states: Tensor, strength: float = 1.0) -> Tensor:
        """Edit features `[..., d]`; computed in float32, returned in their own dtype."""
        if self.down is not None and self.up is not None:
            return add_low_rank(states, self.down, self.up, self.bias, strength)
        assert self.dense is not None
        identity = torch.eye(self.width, dtype=self.dense.dtype, device=self.dense.device)
        return add_low_rank(states, identity, self.dense, self.bias, strength)

    def factors(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The edit of a projection `weight` `[o, d]` as low-rank factors: `W M = up @ down`.

        Returns:
            `up` `[o, r]` and `down` `[r, d]`, in the weight's dtype. A bias is not part of it.
        """
        if self.down is not None and self.up is not None:
            return weight @ self.up.to(weight), self.down.to(weight)
        assert self.dense is not None
        return weight, self.dense.to(weight)


@dataclass(frozen=True)
class Recipe:
    """How an eraser was made: enough to make it again.

    Attributes:
        method: name of the method.
        settings: its checked settings.
        concepts: erased concepts as `{"text", "replacement", "synonyms", "weight"}`.
        preserve: preserved prompts.
        family: name of the model family.
        encoder: fingerprint of the text encoder.
        seed: 0 where nothing random is involved.
        versions: software versions by name.
    """

    method: str
    settings: Mapping[str, Value]
    concepts: tuple[Mapping[str, object], ...]
    preserve: tuple[str, ...]
    family: str
    encoder: str
    seed: int = 0
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Eraser:
    """A fitted erasure, independent of any loaded model.

    Attributes:
        recipe: how it was made.
        context: operators on text features, by text-encoder stream.
    """

    recipe: Recipe
    context: Mapping[str, ContextOperator]

    def operator_for(self, stream: str, width: int, family: str) -> ContextOperator:
        """The operator for a model's text features.

        Raises:
            FamilyError: the eraser was made for another family, or has no operator for this stream.
        """
        operator = self.context.get(stream)
        if family != self.recipe.family or operator is None or operator.width != width:
            raise FamilyError(
                f"This eraser was made for family '{self.recipe.family}' ({', '.join(self.context)}); "
                f"the model is of family '{family}' ({stream}, width {width}).",
                "Load the model it was made for, or erase again on this one.",
            )
        return operator
