"""SAFREE (Yoon et al., ICLR 2025, arXiv 2410.12761): tokens that carry the concept move into what is not the concept.

With C the pooled features of the concept's names as columns, P_C the projection onto their span, and p_i the pooled
features of the prompt whose token i is hidden,

    d_i = |(I - P_C) p_i|,   token i is a trigger where d_i >= (1 + alpha) mean_{j != i} d_j
    e_i <- (I - P_C) P_M e_i for triggers,   M = [p_1 ... p_n]

Hiding a trigger leaves a prompt that is further from the concept. Start, end and padding stay. How long the edit acts
depends on how much it would change, with every content token edited:

    b = 1 - mean_i cos((I - P_C) P_M e_i, e_i),    t' = U sigmoid(2 k (10 b - c))

Differs from the official program: it also puts the concept's names into the negative prompt, and its published figures
are of both together (add the guard `negative` for that); U is 10 steps of 50 there, a share of sampling here; a prompt
of one token is compared with the empty prompt, where the program's mean is empty. Its latent re-attention, which has no
effect in the program, is not here. Longer prompts are seen chunk by chunk. For models with one text encoder.
Official code read, not copied: jaehong31/SAFREE.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ..guard import Guarding, guarded_names
from ..model import TextTower, Token
from ..phrases import end_of
from ..spec import MethodSpec, Parameter, Value
from ..task import Task

_HIDDEN = 0
"""Id that stands in place of a hidden token, as in the official program."""
_THROUGHOUT = 2.0
"""The longest that acts throughout, where k is 0 and a half of it is taken."""


@dataclass(frozen=True, eq=False)
class Triggers:
    """What is known of a prompt: which of its rows are triggers `[t]`, how they are moved `[d, d]`, until when."""

    rows: Tensor
    move: Tensor
    until: float


@dataclass(frozen=True, eq=False)
class Safree:
    """The text part.

    Attributes:
        tower: the text encoder.
        away: I - P_C, `[d, d]` float64.
        alpha: by how much a trigger stands out.
        longest: U, share of sampling.
        steep, middle: k and c.
    """

    tower: TextTower
    away: Tensor
    alpha: float
    longest: float
    steep: float
    middle: float

    def read(self, chunks: Sequence[Sequence[Token]]) -> Triggers:
        """Triggers of all chunks together; the edit lasts as long as in the chunk where it lasts longest."""
        found = [self._read(chunk) for chunk in chunks]
        offsets = [i * len(chunk) for i, chunk in enumerate(chunks)]
        rows = torch.cat([one.rows + offset for one, offset in zip(found, offsets, strict=True)])
        strongest = max(found, key=lambda one: (len(one.rows) > 0, one.until))
        return Triggers(rows, strongest.move, strongest.until)

    def _read(self, chunk: Sequence[Token]) -> Triggers:
        content = list(range(1, end_of(chunk, self.tower.end)))
        if not content:
            return Triggers(torch.zeros(0, dtype=torch.long), self.away, 0.0)
        rows = [[*chunk[:i], _HIDDEN, *chunk[i + 1 :]] for i in content]
        hidden = pooled_rows(self.tower, rows).double()
        distance = (hidden @ self.away).norm(dim=1)
        if len(content) > 1:
            others = (distance.sum() - distance) / (len(content) - 1)
        else:
            others = (pooled_rows(self.tower, [self.tower.ids("")]).double() @ self.away).norm(dim=1)
        triggers = torch.tensor(content)[distance >= (1 + self.alpha) * others]
        move = projection(hidden) @ self.away
        states = self.tower.encode([chunk])[0][0, content].double().cpu()
        changed = 1 - float(functional.cosine_similarity(states @ move, states).mean())
        return Triggers(triggers, move, self.longest * _sigmoid(2 * self.steep * (10 * changed - self.middle)))

    def holds(self, reading: Triggers, percent: float) -> bool:
        return len(reading.rows) > 0 and percent < reading.until

    def edit(self, states: Tensor, reading: Triggers) -> Tensor:
        rows = reading.rows.to(states.device)
        moved = states.index_select(0, rows).double() @ reading.move.to(states.device)
        return states.index_copy(0, rows, moved.to(states.dtype))


def pooled_rows(tower: TextTower, rows: Sequence[Sequence[Token]]) -> Tensor:
    """Features at the first end token of padded rows, `[n, d]` float32 on the CPU."""
    states = tower.encode(rows)[0].cpu()
    ends = [end_of(row, tower.end) for row in rows]
    return states[torch.arange(len(rows)), ends]


def projection(rows: Tensor) -> Tensor:
    """The orthogonal projection onto the span of rows `[m, d]`, `[d, d]`."""
    return torch.linalg.pinv(rows) @ rows


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


class SAFREE:
    """Moves tokens that carry the concept out of its span."""

    needs = (
        "Needs the prompt's tokens, so encode the prompt with this node's CLIP, and a model with one text encoder. "
        "Works at CFG 1. Costs a few encodings of the prompt, and nothing per step."
    )
    spec = MethodSpec(
        name="safree",
        title="SAFREE",
        paper="Yoon et al., SAFREE: Training-Free and Adaptive Guard for Safe Text-to-Image and Video Generation, ICLR "
        "2025 (arXiv 2410.12761)",
        summary="Finds the prompt's tokens that carry the concept and projects them out of its span.",
        families=("demo",),
        parameters=(
            Parameter(
                "alpha",
                0.01,
                "By how much a token has to stand out to count as one that carries the concept, 0 to 1. Start at "
                "0.01, as published; higher finds fewer.",
                step=0.001,
            ),
            Parameter(
                "adaptive",
                True,
                "Let the prompt decide how long the edit acts: the more it would change, the longer. Off, it acts "
                "throughout. On as published.",
            ),
            Parameter(
                "longest",
                0.2,
                "The longest that an adaptive edit acts, as a share of sampling, 0.01 to 1. 0.2 as published (10 steps "
                "of 50).",
                minimum=0.01,
            ),
            Parameter(
                "steep",
                3.5,
                "How sharply long is told from short, 0 to 100. Published: 3.5 for artists, 2.5 for nudity.",
                maximum=100.0,
                step=0.1,
                advanced=True,
            ),
            Parameter(
                "middle",
                5.5,
                "Ten times the mean change at which the edit acts for half of the longest, 0 to 20. Published: 5.5 for "
                "artists, 5.333 for nudity.",
                maximum=20.0,
                step=0.001,
                advanced=True,
            ),
        ),
    )

    def plan(self, task: Task, settings: Mapping[str, Value]) -> Guarding:
        """A text part that reads the prompt's tokens.

        Raises:
            FamilyError: the model has more than one text encoder.
        """
        tower = task.loaded().tower()
        names = pooled_rows(tower, [tower.ids(name) for name in guarded_names(task)]).double()
        away = torch.eye(names.shape[1], dtype=torch.float64) - projection(names)
        adaptive = bool(settings["adaptive"])
        part = Safree(
            tower,
            away,
            float(settings["alpha"]),
            float(settings["longest"]) if adaptive else _THROUGHOUT,
            float(settings["steep"]) if adaptive else 0.0,
            float(settings["middle"]),
        )
        return Guarding(text=part, reader=part)


GUARD = SAFREE()
