"""What one training step looks at: noised latents, the prompts in their roles, and the predictions asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ..task import EncodedPrompt

NULL, CONCEPT, ANCHOR, ATTACKED = "null", "concept", "anchor", "attacked"
"""Roles: the empty prompt, what is erased, what stands for it, the concept under attack."""
NAME = "name"
"""Role of a concept's bare name, whose tokens stand in the concept's prompt."""
TEACHER, STUDENT, STILL, AVERAGE = "teacher", "student", "still", "average"
"""Who predicts: the model before training, the model in training, the latter without gradients, and its moving
average."""
MAIN = "x"
"""The name of a step's latents where there is one set of them."""

Scene = Mapping[str, str]
"""Prompts by role; the empty prompt need not be named."""


class Ask(NamedTuple):
    """A prediction that a term needs: who makes it, for which role, on which of the step's latents."""

    source: str
    role: str
    at: str = MAIN


@dataclass(frozen=True)
class Features:
    """What the denoiser is given of prompts.

    Attributes:
        states: `[n, tokens, d]`; rows that are shorter than the longest end in zeros.
        pooled: `[n, p]`, or None.
        lengths: tokens of every row where they differ; else empty.
        beside: what else the host gives the denoiser for every row, `[1, ...]` by its own names; empty for nothing.
    """

    states: Tensor
    pooled: Tensor | None = None
    lengths: tuple[int, ...] = ()
    beside: tuple[Mapping[str, Tensor], ...] = ()

    @classmethod
    def of(cls, prompts: Sequence[EncodedPrompt]) -> Features:
        """Features of encoded prompts, one row each."""
        return cls.joined(
            [
                cls(
                    prompt.read[None],
                    None if prompt.pooled is None else prompt.pooled[None],
                    beside=(prompt.beside,),
                )
                for prompt in prompts
            ]
        )

    @classmethod
    def joined(cls, parts: Sequence[Features]) -> Features:
        """Rows of several, one after the other."""
        pooled = [part.pooled for part in parts if part.pooled is not None]
        lengths = tuple(length for part in parts for length in part.lengths or part.states.shape[1:2] * len(part))
        beside = tuple(own for part in parts for own in part.beside or ({},) * len(part))
        longest = max(part.states.shape[1] for part in parts)
        return cls(
            torch.cat([functional.pad(part.states, (0, 0, 0, longest - part.states.shape[1])) for part in parts]),
            torch.cat(pooled) if pooled else None,
            lengths if len(set(lengths)) > 1 else (),
            beside if any(beside) else (),
        )

    def __len__(self) -> int:
        return len(self.states)

    def at(self, rows: Sequence[int]) -> Features:
        """Some of the rows, without the zeros that none of them needs."""
        lengths = tuple(self.lengths[row] for row in rows) if self.lengths else ()
        return Features(
            self.states[rows, : max(lengths, default=None)],
            None if self.pooled is None else self.pooled[rows],
            lengths if len(set(lengths)) > 1 else (),
            tuple(self.beside[row] for row in rows) if self.beside else (),
        )

    def alike(self) -> list[list[int]]:
        """The rows in groups that a denoiser can take together: of one length, with the same shapes beside them."""
        groups: dict[object, list[int]] = {}
        for row in range(len(self)):
            shapes = {(name, *own.shape) for name, own in self.beside[row].items()} if self.beside else ()
            groups.setdefault((self.lengths[row] if self.lengths else 0, frozenset(shapes)), []).append(row)
        return list(groups.values())

    def stacked(self) -> Mapping[str, Tensor]:
        """What is beside rows that are alike, `[n, ...]` by name."""
        return {name: torch.cat([own[name] for own in self.beside]) for name in self.beside[0]} if self.beside else {}


@dataclass(frozen=True)
class Latents:
    """Noised latents of one step.

    Attributes:
        x: `[n, c, h, w]`, without gradients.
        sigma: `[n]`, the noise level of each.
        scenes: the prompts that belong to each row.
        clean: `[n, c, h, w]`, what noise was mixed into, or None.
        noise: `[n, c, h, w]`, that noise, or the one that a rollout started from.
        known: the teacher's predictions for these latents by role, where making the latents gave them.
        regions: `[n, h, w]` in 0..1, where in each picture the concept is, if that is known.
    """

    x: Tensor
    sigma: Tensor
    scenes: tuple[Scene, ...]
    clean: Tensor | None = None
    noise: Tensor | None = None
    known: Mapping[str, Tensor] = field(default_factory=dict)
    regions: Tensor | None = None


Moment = Mapping[str, Latents]
"""A step's latents by name."""
