"""How far an eraser acts on a prompt, told from the prompt's text features and tokens: one file per kind of gate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeGuard

import torch
from torch import Tensor

from ..errors import ConceptError

if TYPE_CHECKING:
    from ..task import EncodedPrompt, Task


class Gate(Protocol):
    """A fitted gate; small enough to be kept in an eraser file.

    Attributes:
        kind: name of its file.
        reads_tokens: whether it wants the prompt's token ids beside its features.
        threshold: in 0..1; below it the gate is shut.
    """

    kind: ClassVar[str]
    reads_tokens: ClassVar[bool]

    @property
    def threshold(self) -> float: ...

    @property
    def width(self) -> int:
        """Of the features it reads."""
        ...

    def openness(self, states: Tensor, ids: Sequence[int] = ()) -> float:
        """How far it opens for a prompt, 0 (shut) to 1.

        Args:
            states: the prompt's features `[tokens, d]`, of one chunk or several end to end.
            ids: its token ids where they are known.
        """
        ...

    def tensors(self) -> dict[str, Tensor]:
        """What it is made of, by name."""
        ...


class GateKind(Protocol):
    """Makes gates of one kind.

    Attributes:
        name: of the kind.
        summary: which prompts its gates open for, in half a sentence.
    """

    name: str
    summary: str

    def fit(self, groups: Sequence[Sequence[str]], task: Task, threshold: float) -> list[Gate]:
        """One gate per group of a concept's names.

        Raises:
            ConceptError: a group is empty, or a name cannot be encoded.
        """
        ...

    def load(self, tensors: Mapping[str, Tensor], threshold: float) -> Gate:
        """A gate from its tensors; NumericsError where they do not fit together."""
        ...


def unnamed() -> ConceptError:
    """What to raise for an eraser that no concept is named of."""
    return ConceptError("An eraser names no concept, so no gate can be made for it.", "Merge it in mode sum.")


def owners_of(rows: Sequence[Tensor]) -> Tensor:
    """Which of several groups of rows each row is in, `[rows]` int64, from 0 on."""
    return torch.arange(len(rows)).repeat_interleave(torch.tensor([len(own) for own in rows]))


def own_every(owners: Tensor) -> bool:
    """Whether owners as read from a file are whole numbers from 0 on, with none left out."""
    if owners.dtype != torch.int64 or owners.ndim != 1 or not len(owners):
        return False
    found = owners.unique()
    return torch.equal(found, torch.arange(len(found)))


def start_of(prompts: Sequence[EncodedPrompt]) -> Tensor:
    """Position of the first token of content, as gates keep it; the empty prompt tells none without a start token."""
    return torch.tensor([min(min(prompt.start, len(prompt.states) - 1) for prompt in prompts)])


def is_start(tensor: Tensor | None) -> TypeGuard[Tensor]:
    """Whether a tensor from a file is such a position."""
    return tensor is not None and tensor.shape == (1,) and tensor.dtype == torch.int64 and int(tensor) >= 0


def ramp(value: float, threshold: float) -> float:
    """0 up to the threshold, 1 at 1, straight in between; a threshold of 1 opens at 1 only."""
    if value <= threshold:
        return 1.0 if threshold >= 1 and value >= 1 else 0.0
    return min(1.0, (value - threshold) / (1 - threshold))
