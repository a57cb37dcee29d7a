"""Whether a prompt asks for a concept, told from its text features by a linear discriminant.

With mu and S the mean and the covariance of the tokens of prompts that do not ask for it, and c the mean of a token
that names it, a token x of a prompt is as like that one as

    l(x) = (x - mu)^T (S + r I)^-1 (c - mu) / w,    w = (c - mu)^T (S + r I)^-1 (c - mu)

which is 0 for the mean of what is kept and 1 for the name's own token (Fisher 1936, with a ridge r). A prompt is as
like a name as the mean over the name's tokens, weighed by w, of its largest l: tokens that say little count for little.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...kernels.gram import gram_of
from ..algebra.context import TEMPLATES
from ..algebra.tokens import name_rows
from ..errors import NumericsError
from ..guard import guarded_names
from ..task import Task
from . import Gate, is_start, own_every, owners_of, start_of, unnamed

_RIDGE = 0.01
"""Of the mean variance."""
_PARTS = ("centre", "readers", "owners", "start")


@dataclass(frozen=True, eq=False)
class Discriminant:
    """Opens for prompts that have tokens like those of a concept's name.

    Attributes:
        centre: mu, `[d]` float64.
        readers: one linear reader of likeness per token of a name, `[k, d]`, times its share of the name's weight.
        owners: the name that each belongs to, `[k]` int64, from 0 on.
        start: position of a prompt's first token of content, `[1]` int64; what stands before it says nothing.
        threshold: likeness from which on it opens.
    """

    kind: ClassVar[str] = "discriminant"
    reads_tokens: ClassVar[bool] = False

    centre: Tensor
    readers: Tensor
    owners: Tensor
    start: Tensor
    threshold: float

    @property
    def width(self) -> int:
        return len(self.centre)

    def likeness(self, states: Tensor) -> float:
        """The likeness of a prompt `[tokens, d]` to the name that it is most like."""
        return float(self._names(states).max())

    def nearest(self, states: Tensor) -> int:
        """Which of the names a prompt `[tokens, d]` is most like, by its number."""
        return int(self._names(states).argmax())

    def _names(self, states: Tensor) -> Tensor:
        """Likeness to each name, `[names]`."""
        each = ((states[int(self.start) :].double().cpu() - self.centre) @ self.readers.T).max(0).values
        return each.new_zeros(int(self.owners.max()) + 1).index_add(0, self.owners, each)

    def opens(self, states: Tensor) -> bool:
        """Whether the prompt asks for a concept."""
        return self.likeness(states) >= self.threshold

    def openness(self, states: Tensor, ids: Sequence[int] = ()) -> float:
        """1 where it opens, else 0."""
        return float(self.opens(states))

    def tensors(self) -> dict[str, Tensor]:
        return {"centre": self.centre, "readers": self.readers, "owners": self.owners, "start": self.start}


class Kind:
    """The discriminant, for erasers behind gates."""

    name = Discriminant.kind
    summary = "opens fully for prompts with a word that a linear discriminant of text features takes for the concept"

    def fit(self, groups: Sequence[Sequence[str]], task: Task, threshold: float) -> list[Gate]:
        if not all(groups):
            raise unnamed()
        return [*_fitted(groups, task, threshold)]

    def load(self, tensors: Mapping[str, Tensor], threshold: float) -> Gate:
        known = [tensors[name] for name in _PARTS if name in tensors]
        if len(known) != len(_PARTS) or not _fits(*known):
            raise NumericsError("A discriminant's tensors do not fit together.", "Make the eraser again.")
        centre, readers, owners, start = known
        return Discriminant(centre.double(), readers.double(), owners, start, threshold)


GATE = Kind()


def fit_gate(task: Task, threshold: float) -> Discriminant:
    """A gate for a task's concepts, against the empty prompt and the preserved ones: name many.

    Raises:
        ConceptError: there is no concept.
    """
    return _fitted([guarded_names(task)], task, threshold)[0]


def likenesses(gate: Discriminant, task: Task, most: int = 20) -> str:
    """Where a threshold may lie: the likeness of the concepts' names, and of the nearest preserved prompts."""
    names = guarded_names(task)
    kept = sorted(((gate.likeness(p.states), p.text) for p in task.encode(task.held)), reverse=True)[:most]
    own = [f"{gate.likeness(p.states):.2f}  {p.text}" for p in task.encode(list(names))]
    others = [f"{likeness:.2f}  {text or '(empty prompt)'}" for likeness, text in kept]
    return "\n".join(["Likeness to the concepts (gate):", *own, "Preserved prompts that come nearest:", *others])


def _fitted(groups: Sequence[Sequence[str]], task: Task, threshold: float) -> list[Discriminant]:
    kept = task.encode(task.held)
    parts = [part for prompt in kept for part in prompt.parts or (prompt,)]
    others = torch.cat([part.states[part.start : part.last + 2] for part in parts]).double()
    centre = others.mean(0)
    spread = gram_of(others - centre) / len(others)
    round_part = torch.eye(len(centre), dtype=torch.float64) * spread.diagonal().mean().clamp(min=1e-12)
    found = []
    for names in groups:
        rows = [name_rows(task.encode, name, TEMPLATES["object"]) for name in names]
        own = torch.cat(rows) - centre
        readers = torch.linalg.solve(spread + _RIDGE * round_part, own.T).T
        owners, weights = owners_of(rows), (readers * own).sum(1)
        whole = weights.new_zeros(len(rows)).index_add(0, owners, weights)
        found.append(Discriminant(centre, readers / whole[owners, None], owners, start_of(kept), threshold))
    return found


def _fits(centre: Tensor, readers: Tensor, owners: Tensor, start: Tensor) -> bool:
    shapes = centre.ndim == 1 and owners.ndim == 1 and readers.shape == (len(owners), len(centre))
    return shapes and own_every(owners) and is_start(start)
