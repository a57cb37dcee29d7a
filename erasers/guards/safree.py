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
of one token is compared with the empty prompt, where the program's mean is empty. Longer prompts are seen chunk by
chunk. Of models with two CLIPs both halves are edited, where the program edits one.

The latent re-attention filters what a UNet's first half hands over to its second while the edit acts. With F the
Fourier transform of these features, at the lowest two frequencies of each axis (-1 and 0, as in FreeU),

    F'(edited) = s F(edited)   where |F(edited)| > |F(original)|,   else F(edited)

with s1 where they meet features as wide as the middle block's, s2 where these are half as wide. The paper does not say
how complex numbers are compared: they are by their size here, and the edited prompt's has to be a hundredth larger, as
features that know nothing of the text yet differ by rounding alone. It has no effect in the official program, where its
branch is never taken, so that no published figure is of it, and it is off here unless asked for.
Official code read, not copied: jaehong31/SAFREE.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import FamilyError
from ..guard import MIDDLE_BLOCK, Guarding, guarded_names
from ..model import TextTower, Token
from ..phrases import end_of
from ..sites import AN_END
from ..spec import MethodSpec, Parameter, Value
from ..task import Task

_LARGER = 1.01
"""How many times larger than the original's a frequency has to be to be weakened."""
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


@dataclass(frozen=True)
class ReAttention:
    """The part for what the halves of a UNet hand over.

    Attributes:
        scales: s by the width of the features that are met, as a share of the middle block's.
    """

    scales: Mapping[float, float]

    def keep(self, skip: Tensor, width: float) -> Tensor | None:
        """|F| at the lowest frequencies, `[n, c, 4]`."""
        return lowest(skip)[0].abs() if width in self.scales else None

    def change(self, skip: Tensor, kept: Tensor, width: float) -> Tensor:
        found, waves = lowest(skip)
        less = torch.where(found.abs() > _LARGER * kept, (self.scales[width] - 1) * found, 0)
        change = torch.einsum("ncf,fhw->nchw", less, waves).real / waves[0].numel()
        return (skip.float() + change).to(skip.dtype)


def lowest(features: Tensor) -> tuple[Tensor, Tensor]:
    """The Fourier transform of `[n, c, h, w]` at frequencies -1 and 0 of each axis.

    Returns:
        Coefficients `[n, c, 4]` and their waves `[4, h, w]`, complex; features are the mean of coefficients times waves
        over all frequencies.
    """
    height, width = features.shape[2:]
    down, across = (torch.arange(n, device=features.device) * (2 * math.pi / n) for n in (height, width))
    turns = torch.stack([-v * down[:, None] - u * across for v in (0, 1) for u in (0, 1)])
    waves = torch.polar(torch.ones_like(turns), turns)
    return torch.einsum("nchw,fhw->ncf", features.to(waves.dtype), waves.conj()), waves


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
        "Needs the prompt's tokens, so encode the prompt with this node's CLIP, and CLIP text encoders alone (SD 1, SD "
        "2, SDXL): their end token sums a prompt up. Works at CFG 1. Costs a few encodings of the prompt, and nothing "
        "per step. Re-attention needs a UNet, and costs one prediction more per step while the edit acts."
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
            Parameter(
                "reattention",
                False,
                "Weaken the coarsest features of the edited prompt where they are stronger than the original's, while "
                "the edit acts. Needs a UNet. The paper has it on; its program never reaches it. Start with off.",
            ),
            Parameter(
                "s1",
                0.9,
                "For re-attention: what is left of them at the widest features, 0 to 1. 0.9 as published; 1 leaves "
                "them.",
                advanced=True,
            ),
            Parameter(
                "s2",
                0.2,
                "For re-attention: what is left of them at features half as wide, 0 to 1. 0.2 as published; 1 leaves "
                "them.",
                advanced=True,
            ),
        ),
        wants=(AN_END,),
        small={"adaptive": False},
    )

    def plan(self, task: Task, settings: Mapping[str, Value]) -> Guarding:
        """A text part that reads the prompt's tokens.

        Raises:
            FamilyError: re-attention is on and it is no UNet.
        """
        tower = task.tower()
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
        if not settings["reattention"]:
            return Guarding(text=part, reader=part)
        if not task.loaded().modules(MIDDLE_BLOCK):
            raise FamilyError("Re-attention is for UNets, and this model is none.", "Switch re-attention off.")
        skips = ReAttention({1.0: float(settings["s1"]), 0.5: float(settings["s2"])})
        return Guarding(text=part, reader=part, skips=skips)


GUARD = SAFREE()
