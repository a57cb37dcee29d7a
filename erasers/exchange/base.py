"""The model that a file is read against, or written for: names, shapes and weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from ..errors import FamilyError
from ..sites import Family, Site

ADAPTERS, TEXT = "adapters", "text_encoder"
Owner = tuple[str, str]
"""A weight: the part of an eraser that it belongs to, `ADAPTERS` or `TEXT`, and its name there."""


@dataclass(frozen=True)
class Base:
    """A loaded model.

    Attributes:
        family: what it is.
        sites: the weights that read text features.
        shapes: shape of every weight, by part and name; a text encoder's names begin with its stream.
        read: a weight in float32 on the CPU.
        native: names of the denoiser's weights in checkpoints of the original kind, by the pack's names.
        encoder: fingerprint of the text encoder.
    """

    family: Family
    sites: tuple[Site, ...]
    shapes: Mapping[Owner, tuple[int, ...]]
    read: Callable[[Owner], Tensor]
    native: Mapping[str, str] = field(default_factory=dict)
    encoder: str = ""

    def shape(self, owner: Owner) -> tuple[int, ...]:
        """The shape of a weight; FamilyError where the model has no such weight."""
        if owner not in self.shapes:
            part = "text encoder" if owner[0] == TEXT else "model"
            raise FamilyError(f"The {part} has no weight '{owner[1]}'.", "Load the model that the eraser was made for.")
        return self.shapes[owner]

    @property
    def streams(self) -> tuple[str, ...]:
        """Names of the text encoders, in the order that other programs number them."""
        return tuple(self.family.stream.split("+"))
