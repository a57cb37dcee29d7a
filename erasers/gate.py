"""Whether a prompt asks for a concept, told from its text features by a linear discriminant.

With mu and S the mean and the covariance of the tokens of prompts that do not ask for it, and c the mean of the tokens
that name it, a token x of a prompt is as like the concept as

    l(x) = (x - mu)^T (S + r I)^-1 (c - mu) / [(c - mu)^T (S + r I)^-1 (c - mu)]

which is 0 for the mean of what is kept and 1 for the concept's own name (Fisher 1936, with a ridge r).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .algebra.context import TEMPLATES
from .guard import guarded_names
from .task import Task

_RIDGE = 0.01
"""Of the mean variance."""


@dataclass(frozen=True, eq=False)
class Gate:
    """Opens for prompts with a token that is like a concept's.

    Attributes:
        centre: mu, `[d]` float64.
        readers: one linear reader of likeness per name of a concept, `[m, d]`.
        threshold: likeness from which on it opens.
    """

    centre: Tensor
    readers: Tensor
    threshold: float

    def likeness(self, states: Tensor) -> float:
        """The largest likeness of a token of a prompt `[tokens, d]` to a concept."""
        return float(self._each(states).max())

    def nearest(self, states: Tensor) -> int:
        """Which of the names a prompt `[tokens, d]` is most like: the number of its reader."""
        return int(self._each(states).max(0).values.argmax())

    def _each(self, states: Tensor) -> Tensor:
        return (states[1:].double().cpu() - self.centre) @ self.readers.T

    def opens(self, states: Tensor) -> bool:
        """Whether the prompt asks for a concept."""
        return self.likeness(states) >= self.threshold


def fit_gate(task: Task, threshold: float) -> Gate:
    """A gate for a task's concepts, against the empty prompt and the preserved ones: name many.

    Raises:
        ConceptError: there is no concept.
    """
    names = guarded_names(task)
    others = torch.cat([prompt.states[1 : prompt.last + 2] for prompt in task.encode(task.held)]).double()
    centre = others.mean(0)
    spread = (others - centre).T @ (others - centre) / len(others)
    round_part = torch.eye(len(centre), dtype=torch.float64) * spread.diagonal().mean().clamp(min=1e-12)
    own = []
    for name in names:
        prompts = task.encode([frame.format(name) for frame in TEMPLATES["object"]])
        own.append(torch.stack([prompt.states[prompt.last] for prompt in prompts]).double().mean(0) - centre)
    readers = torch.linalg.solve(spread + _RIDGE * round_part, torch.stack(own).T).T
    return Gate(centre, readers / (readers * torch.stack(own)).sum(1, keepdim=True), threshold)


def likenesses(gate: Gate, task: Task, most: int = 20) -> str:
    """Where a threshold may lie: the likeness of the concepts' names, and of the nearest preserved prompts."""
    names = guarded_names(task)
    kept = sorted(((gate.likeness(p.states), p.text) for p in task.encode(task.held)), reverse=True)[:most]
    own = [f"{gate.likeness(p.states):.2f}  {p.text}" for p in task.encode(list(names))]
    others = [f"{likeness:.2f}  {text or '(empty prompt)'}" for likeness, text in kept]
    return "\n".join(["Likeness to the concepts (gate):", *own, "Preserved prompts that come nearest:", *others])
