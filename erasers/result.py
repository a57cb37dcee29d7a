"""The eraser: what every method produces and every consumer accepts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from ..kernels.reference.bottleneck import bottleneck
from ..kernels.reference.low_rank import add_low_rank
from .errors import FamilyError, NumericsError
from .gates import Gate
from .sites import Family
from .spec import Value


@dataclass(frozen=True)
class ContextOperator:
    """An affine map of text features, x -> x + s * (M x + b), applied to every token.

    `M = up @ down` in factors while their rank is below the width, else in its dense form.

    Attributes:
        down: `[r, d]` float, or None.
        up: `[d, r]` float, or None.
        dense: `[d, d]` float, instead of the factors.
        bias: `[d]` float, or None.
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
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor for name, tensor in parts.items() if tensor is not None}

    def to(self, device: torch.device) -> ContextOperator:
        """A copy of the operator on a device; outside inference mode one that gradients pass."""
        return ContextOperator(**{name: tensor.to(device, copy=True) for name, tensor in self.tensors().items()})

    def scaled(self, strength: float) -> ContextOperator:
        """The operator at another strength."""
        parts = {name: tensor * (1.0 if name == "down" else strength) for name, tensor in self.tensors().items()}
        return ContextOperator(**parts)

    def apply(self, states: Tensor, strength: float = 1.0) -> Tensor:
        """Edit features `[..., d]`; computed in float32, returned in their own dtype."""
        if self.down is not None and self.up is not None:
            return add_low_rank(states, self.down, self.up, self.bias, strength)
        assert self.dense is not None
        identity = torch.eye(self.width, dtype=self.dense.dtype, device=self.dense.device)
        return add_low_rank(states, identity, self.dense, self.bias, strength)

    def factors(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The edit of a projection as low-rank factors: `W M = up @ down`.

        Args:
            weight: `[o, e]`, e >= d; the text features are its leading d columns.

        Returns:
            `up` `[o, r]` and `down` `[r, e]`, in the weight's dtype. A bias is not part of it.
        """
        own, rest = weight[:, : self.width], weight.shape[1] - self.width
        if self.down is not None and self.up is not None:
            up, down = own @ self.up.to(weight), self.down.to(weight)
        else:
            assert self.dense is not None
            up, down = own, self.dense.to(weight)
        return up, torch.nn.functional.pad(down, (0, rest)) if rest else down


@dataclass(frozen=True)
class WeightEdit:
    """A change of one weight, W -> W + s * D, in low-rank, dense or sparse form.

    A convolution's weight counts as a matrix `[o, d]` with its kernel's places among the columns.

    Attributes:
        down: `[r, d]` float, or None.
        up: `[o, r]` float; D = up @ down.
        dense: `[o, d]`, D itself.
        indices: `[k]` int64, places in the flattened weight.
        values: `[k]`, what is added there; the rest of D is zero.
    """

    down: Tensor | None = None
    up: Tensor | None = None
    dense: Tensor | None = None
    indices: Tensor | None = None
    values: Tensor | None = None

    def __post_init__(self) -> None:
        shapes = {name: tuple(tensor.shape) for name, tensor in self.tensors().items()}
        sizes = {name: len(shape) for name, shape in shapes.items()}
        low_rank = sizes == {"down": 2, "up": 2} and shapes["up"][1] == shapes["down"][0]
        sparse = sizes == {"indices": 1, "values": 1} and shapes["indices"] == shapes["values"]
        if not (low_rank or sparse or sizes == {"dense": 2}):
            raise NumericsError(
                f"A weight edit cannot have tensors of shapes {shapes}.",
                "It needs down [r, d] and up [o, r], or dense [o, d], or indices [k] and values [k].",
            )
        for name, tensor in self.tensors().items():
            if not bool(torch.isfinite(tensor).all()):
                raise NumericsError(
                    f"The weight edit's '{name}' holds values that are not finite.", "Make the eraser again."
                )
        if self.indices is not None and len(self.indices) and int(self.indices.min()) < 0:
            raise NumericsError("A sparse weight edit has a negative place.", "Make the eraser again.")

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that are there, by name."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor for name, tensor in parts.items() if tensor is not None}

    def _fits(self, shape: tuple[int, ...]) -> bool:
        flat = (shape[0], math.prod(shape[1:])) if shape else ()
        if self.up is not None and self.down is not None:
            return (len(self.up), self.down.shape[1]) == flat
        if self.dense is not None:
            return tuple(self.dense.shape) == flat
        assert self.indices is not None
        return len(self.indices) == 0 or int(self.indices.max()) < math.prod(shape)

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """FamilyError if a weight of this shape cannot take the edit."""
        if not self._fits(shape):
            raise FamilyError(
                f"The eraser's edit does not fit a weight of shape {tuple(shape)}.",
                "Load the model it was made for, or erase again on this one.",
            )

    def delta(self, shape: tuple[int, ...]) -> Tensor:
        """D as a dense tensor of a weight's shape; FamilyError if it does not fit."""
        self.check_shape(shape)
        if self.up is not None and self.down is not None:
            return (self.up @ self.down).reshape(shape)
        if self.dense is not None:
            return self.dense.reshape(shape)
        assert self.indices is not None
        assert self.values is not None
        return self.values.new_zeros(math.prod(shape)).index_add_(0, self.indices, self.values).reshape(shape)


@dataclass(frozen=True)
class Bottleneck:
    """A small network beside a layer: its output x becomes x + s * (up gelu(down x + down_bias) + up_bias).

    Attributes:
        down: `[r, c]` float.
        down_bias: `[r]`.
        up: `[c, r]`.
        up_bias: `[c]`.
    """

    down: Tensor
    down_bias: Tensor
    up: Tensor
    up_bias: Tensor

    def __post_init__(self) -> None:
        shapes = {name: tuple(tensor.shape) for name, tensor in self.tensors().items()}
        rank, width = shapes["down"] if len(shapes["down"]) == 2 else (0, 0)
        wanted = {"down": (rank, width), "down_bias": (rank,), "up": (width, rank), "up_bias": (width,)}
        if shapes != wanted:
            raise NumericsError(
                f"A bottleneck cannot have tensors of shapes {shapes}.",
                "It needs down [r, c], down_bias [r], up [c, r] and up_bias [c].",
            )
        if not all(bool(torch.isfinite(tensor).all()) for tensor in self.tensors().values()):
            raise NumericsError("A bottleneck holds values that are not finite.", "Make the eraser again.")

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def to(self, device: torch.device) -> Bottleneck:
        """A copy on a device."""
        return Bottleneck(**{name: tensor.to(device, copy=True) for name, tensor in self.tensors().items()})

    def apply(self, x: Tensor, strength: float = 1.0) -> Tensor:
        """Features `[..., c]` with what the network adds to them."""
        return x + strength * bottleneck(x, **self.tensors())


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

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that was erased, synonyms included."""
        synonyms = [concept.get("synonyms", ()) for concept in self.concepts]
        own = [str(concept["text"]) for concept in self.concepts]
        return (*own, *(str(name) for names in synonyms if isinstance(names, list | tuple) for name in names))


@dataclass(frozen=True)
class Eraser:
    """A fitted erasure, independent of any loaded model; at least one part is not empty.

    Attributes:
        recipe: how it was made.
        context: operators on text features, by text-encoder stream; pooled features are a stream
            of their own.
        adapters: edits of the denoiser's weights, by parameter name.
        text_encoder: edits of the text encoders' weights, by stream and parameter name.
        modules: small networks beside layers of the denoiser, by module name.
        training: what training needs to go on from here, by name; empty for a finished eraser.
        members: erasers that act on a prompt as far as their gates open; in none of them is a text-encoder part, which
            would act before any gate is asked, nor another member.
        figures: what evaluations and attacks of it measured, by name: a value and its 95 % interval.
    """

    recipe: Recipe
    context: Mapping[str, ContextOperator] = field(default_factory=dict)
    adapters: Mapping[str, WeightEdit] = field(default_factory=dict)
    text_encoder: Mapping[str, WeightEdit] = field(default_factory=dict)
    modules: Mapping[str, Bottleneck] = field(default_factory=dict)
    training: Mapping[str, Tensor] = field(default_factory=dict)
    members: tuple[Member, ...] = ()
    figures: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if any(member.eraser.text_encoder or member.eraser.members for member in self.members):
            raise NumericsError(
                "An eraser of the text encoder, or one of gated parts, cannot stand behind a gate.",
                "Merge it in mode sum, or apply it by itself.",
            )
        if not (self.context or self.adapters or self.text_encoder or self.modules or self.members):
            raise NumericsError("The eraser changes nothing.", "No place to erase from was found; check the settings.")

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor but those of training, under its name in files (store/eraser_file.py)."""
        parts: dict[str, Mapping[str, ContextOperator | WeightEdit | Bottleneck]] = {
            "context": self.context,
            "adapters": self.adapters,
            "text_encoder": self.text_encoder,
            "modules": self.modules,
        }
        found = {
            f"{part}.{owner}.{name}": tensor
            for part, owners in parts.items()
            for owner, entry in owners.items()
            for name, tensor in entry.tensors().items()
        }
        for number, member in enumerate(self.members):
            own = member.eraser.tensors() | {f"gate.{name}": tensor for name, tensor in member.gate.tensors().items()}
            found |= {f"members.{number}.{name}": tensor for name, tensor in own.items()}
        return found

    def check_family(self, family: Family) -> None:
        """Refuse a model that the eraser is not for.

        Raises:
            FamilyError: the families differ, or the text features' widths do.
        """
        misfits = [stream for stream, operator in self.context.items() if family.widths.get(stream) != operator.width]
        if family.name != self.recipe.family or misfits:
            made = ", ".join(f"{stream} {operator.width}" for stream, operator in self.context.items())
            raise FamilyError(
                f"This eraser was made for family '{self.recipe.family}' ({made or 'weights'}); "
                f"the model is of family '{family.name}' ({family.stream} {family.width}).",
                "Load the model it was made for, or erase again on this one.",
            )
        for member in self.members:
            member.eraser.check_family(family)
            if member.gate.width != family.width:
                raise FamilyError(
                    f"A gate of this eraser reads text features of width {member.gate.width}; those of the model are "
                    f"{family.width} wide.",
                    "Load the model it was made for, or merge the stack again on this one.",
                )


@dataclass(frozen=True)
class Member:
    """An eraser behind a gate.

    Attributes:
        gate: how far it acts on which prompt.
        eraser: what acts.
    """

    gate: Gate
    eraser: Eraser
