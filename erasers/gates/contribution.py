"""How much a prompt says of a concept, token by token, after CIDM's elastic weight aggregation (Dong et al., NeurIPS
2024, arXiv 2410.17594).

With u_m the unit features of the concept's own tokens, averaged over sentences, and h_n those of the prompt's tokens,

    q_m = max_n <u_m, h_n>,    a = mean_m q_m,    gate = [(a - tau) / (1 - tau)]^4 clipped to 0..1

Differs from the paper: there the fourth powers of all adapters are divided by their sum, so that they always add up to
1; an eraser has to be shut for prompts that do not ask for it, and may not be weakened by others. A concept opens by
its nearest name.
Official code read, not copied: JiahuaDong/CIFC.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from ..algebra.context import TEMPLATES
from ..algebra.tokens import name_rows
from ..errors import NumericsError
from ..task import Task
from . import Gate, is_start, own_every, owners_of, ramp, start_of, unnamed

_POWER = 4


@dataclass(frozen=True, eq=False)
class Contribution:
    """Opens where every token of a concept has one like it in the prompt.

    Attributes:
        keys: unit features of the phrases' own tokens, `[k, d]`.
        owners: the phrase that each belongs to, `[k]` int64, from 0 on.
        start: position of a prompt's first token of content, `[1]` int64; what stands before it says nothing.
        threshold: tau.
    """

    kind: ClassVar[str] = "contribution"
    reads_tokens: ClassVar[bool] = False

    keys: Tensor
    owners: Tensor
    start: Tensor
    threshold: float

    @property
    def width(self) -> int:
        return self.keys.shape[1]

    def openness(self, states: Tensor, ids: Sequence[int] = ()) -> float:
        return ramp(self.likeness(states), self.threshold) ** _POWER

    def likeness(self, states: Tensor) -> float:
        """a, of the nearest phrase."""
        nearest = (functional.normalize(states[int(self.start) :].float().cpu(), dim=1) @ self.keys.T).max(0).values
        return max(float(nearest[self.owners == owner].mean()) for owner in self.owners.unique())

    def tensors(self) -> dict[str, Tensor]:
        return {"keys": self.keys, "owners": self.owners, "start": self.start}


class Kind:
    """Contributions."""

    name = Contribution.kind
    summary = "opens where each of the concept's tokens has one like it in the prompt, after CIDM"

    def fit(self, groups: Sequence[Sequence[str]], task: Task, threshold: float) -> list[Gate]:
        if not all(groups):
            raise unnamed()
        frames = TEMPLATES["object"]
        start = start_of(task.encode([""]))
        rows = [[name_rows(task.encode, name, frames) for name in names] for names in groups]
        return [_gate(own, start, threshold) for own in rows]

    def load(self, tensors: Mapping[str, Tensor], threshold: float) -> Gate:
        keys, owners, start = (tensors.get(name) for name in ("keys", "owners", "start"))
        if keys is None or owners is None or not _fits(keys, owners) or not is_start(start):
            raise NumericsError("A contribution gate's tensors do not fit together.", "Make the eraser again.")
        return Contribution(keys, owners, start, threshold)


GATE = Kind()


def _fits(keys: Tensor, owners: Tensor) -> bool:
    return keys.ndim == 2 and len(keys) == len(owners) and own_every(owners)


def _gate(rows: Sequence[Tensor], start: Tensor, threshold: float) -> Contribution:
    keys = functional.normalize(torch.cat(list(rows)).float(), dim=1)
    return Contribution(keys, owners_of(rows), start, threshold)
