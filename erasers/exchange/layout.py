"""What a file layout of another program is to the rest of the pack."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from torch import Tensor

from ..errors import EraserFileError
from ..result import Bottleneck, WeightEdit
from .base import Base, Owner
from .factors import Change

_NAMED = 3


@dataclass(frozen=True)
class Parts:
    """What a file holds, as parts of an eraser."""

    edits: Mapping[Owner, WeightEdit] = field(default_factory=dict)
    modules: Mapping[str, Bottleneck] = field(default_factory=dict)


@dataclass(frozen=True)
class Written:
    """Tensors of a file by name, and the smallest share of a weight's change (its squared norm) that they keep."""

    tensors: Mapping[str, Tensor]
    kept: float = 1.0


class Layout(Protocol):
    """A layout that can be read.

    Attributes:
        name: id, shown to people too.
        about: who writes such files.
    """

    name: str
    about: str

    def recognise(self, keys: Collection[str]) -> bool:
        """Whether a file with these tensors is meant to be of this layout."""
        ...

    def read(self, tensors: Mapping[str, Tensor], base: Base) -> Parts:
        """What the tensors change.

        Raises:
            LetheError: a tensor is unknown, does not fit the model, or nothing is changed.
        """
        ...


@runtime_checkable
class WritableLayout(Layout, Protocol):
    """A layout that erasers can be written in.

    Attributes:
        whole: whether it holds changes as they are, not only as factors.
    """

    whole: bool

    def write(self, changes: Mapping[Owner, Change], base: Base, rank: int = 0) -> Written:
        """The tensors of a file.

        Args:
            rank: the most a weight's factors may have; 0 for as many as it takes to be exact.

        Raises:
            SettingError: a change does not fit into the layout.
        """
        ...


def refuse_unknown(keys: Collection[str], layout: str) -> None:
    """EraserFileError that names the first of the tensors a layout does not know, if there are any."""
    if keys:
        shown = ", ".join(f"'{key[:120]}'" for key in list(keys)[:_NAMED])
        raise EraserFileError(
            f"it holds {len(keys)} tensors that layout '{layout}' does not have, such as {shown}",
            "Connect the model and CLIP that the file was made for, or ask its author for another layout.",
        )
