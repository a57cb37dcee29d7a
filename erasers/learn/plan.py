"""A recipe's plan: its blocks, as data. The loop (learn/loop.py) is the same for all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from .moment import Ask, Features, Latents, Moment
from .trainables import Parameterisation, Trainables

if TYPE_CHECKING:
    from .run import Run

ADAM, ADAMW, ADAMW_8BIT, SGD = "adam", "adamw", "adamw-8bit", "sgd"
CONSTANT, COSINE, RESTARTS = "constant", "cosine", "cosine with restarts"
ERASE, KEEP = "erase", "keep"
"""What a term is for."""


@dataclass(frozen=True)
class Schedule:
    """How long, how fast and with which optimiser.

    Attributes:
        steps: optimiser steps.
        rate: learning rate at its height.
        batch: rows of a step.
        rank: of low-rank and bottleneck parameterisations.
        optimizer: ADAM, ADAMW, ADAMW_8BIT (needs bitsandbytes) or SGD.
        decay: weight decay.
        betas: of Adam.
        clip: largest norm of all gradients together; 0 for no limit.
        course: CONSTANT, COSINE or RESTARTS (three cycles) of the rate.
        warmup: steps in which the rate rises.
        average: decay of a moving average of the tensors, which then is the result; 0 for none.
    """

    steps: int
    rate: float
    batch: int = 1
    rank: int = 1
    optimizer: str = ADAM
    decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = 0.0
    course: str = CONSTANT
    warmup: int = 0
    average: float = 0.0


class Source(Protocol):
    """Gives each step its latents."""

    def draw(self, run: Run, rows: int) -> Mapping[str, Latents]:
        """Latents by name, each of `rows` rows; rows of one index belong together."""
        ...


class Maker(Protocol):
    """Makes text features that no prompt has: random ones, or those of an adversary."""

    def make(self, run: Run, moment: Moment) -> Features:
        """One row per row of the step's latents; may run the model and train vectors of its own."""
        ...


class Term(Protocol):
    """One part of the loss.

    Attributes:
        aim: ERASE or KEEP.
        weight: its factor.
    """

    @property
    def aim(self) -> str: ...

    @property
    def weight(self) -> float: ...

    def asks(self) -> Sequence[Ask]:
        """The predictions it needs."""
        ...

    def loss(self, run: Run, moment: Moment, seen: Mapping[Ask, Tensor]) -> Tensor:
        """A scalar, without `weight`, in the model's own prediction space."""
        ...


@dataclass(frozen=True)
class Wrapped:
    """A term around another, whose aim and weight it has.

    Attributes:
        term: the other.
    """

    term: Term

    @property
    def aim(self) -> str:
        return self.term.aim

    @property
    def weight(self) -> float:
        return self.term.weight


Penalty = Callable[[Trainables], Tensor]
"""A part of the loss that depends on the trained tensors alone; a scalar."""


@dataclass(frozen=True)
class Plan:
    """A recipe's blocks for one task.

    Attributes:
        parameters: what is trained.
        sources: where latents come from, in the order they draw.
        terms: the parts of the loss.
        makers: features by role, made anew each step, in order.
        penalties: parts of the loss of the trained tensors alone, with the aim they are counted to.
        surgery: takes from the erasing gradient what would undo the keeping one (learn/surgery.py).
        mask: picks the entries that may change, before the first step (learn/saliency.py).
    """

    parameters: Parameterisation
    sources: tuple[Source, ...]
    terms: tuple[Term, ...]
    makers: Mapping[str, Maker] = field(default_factory=dict)
    penalties: tuple[Penalty, ...] = ()
    surgery: Callable[[list[Tensor | None], list[Tensor | None]], list[Tensor | None]] | None = None
    mask: Callable[[Run], Mapping[str, Tensor]] | None = None
