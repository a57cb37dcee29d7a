"""What an attack is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from torch import Tensor

from .concepts import Concept
from .errors import ConceptError
from .model import Model, TextTower
from .painter import Cue, Painter, Shot, prompted
from .spec import MethodSpec, Value

Item = TypeVar("Item")
_CHECK_SEEDS = 1_000_000
"""Where the seeds of check pictures begin, far from those of the pictures that count."""


class Track(Protocol):
    """Goes through items while someone watches."""

    def __call__(self, items: Iterable[Item], count: int, /) -> Iterable[Item]:
        """The same items, of which there are `count`."""
        ...


def untracked(items: Iterable[Item], count: int) -> Iterable[Item]:
    """Goes through items without telling anyone."""
    return items


@dataclass(frozen=True)
class Target:
    """An erased concept under attack. Nothing here changes a model.

    Attributes:
        concept: what was erased.
        prompts: the attacked prompts; each asks for the concept.
        guarded: the model under attack, with its erasers and guards.
        base: the untouched model, for attacks that know it.
        painter: draws with the guarded model.
        shows: pictures `[n, 3, h, w]` to `[n]` bool, whether the concept is seen.
        steps, cfg: to draw pictures of the concept with, where an attack needs them.
        words: other words that the attacker tries.
        seed: of everything random.
        track: goes through items with progress, and stops when the user cancels.
    """

    concept: Concept
    prompts: tuple[str, ...]
    guarded: Model
    base: Model
    painter: Painter
    shows: Callable[[Tensor], Tensor]
    steps: int = 20
    cfg: float = 7.5
    words: tuple[str, ...] = ()
    seed: int = 0
    track: Track = untracked

    def __post_init__(self) -> None:
        if not self.prompts or not all(prompt.strip() for prompt in self.prompts):
            raise ConceptError("There is no prompt to attack.", "Write one per line; each asks for the concept.")

    def plain(self) -> tuple[Cue, ...]:
        """The attacked prompts as they are."""
        return tuple(prompted(prompt) for prompt in self.prompts)

    def tower(self, model: Model | None = None) -> TextTower:
        """The text encoder of a model, of the guarded one where none is given.

        Raises:
            ConceptError: it reads no token in the concept's name.
            FamilyError: the model has more than one text encoder.
        """
        found = (model or self.guarded).tower()
        if not found.content(self.concept.text):
            raise ConceptError(
                f"The text encoder reads nothing in '{self.concept.text}'.", "Name the concept in words it knows."
            )
        return found

    def check(self, cues: Sequence[Cue], tries: int) -> list[int]:
        """Draw each cue `tries` times with the guarded model; how many pictures of each show the concept."""
        shots = [Shot(cue, self.seed + _CHECK_SEEDS + i) for cue in cues for i in range(tries)]
        shown = self.shows(self.painter.paint(shots)).reshape(len(cues), tries)
        return shown.sum(1).tolist()

    def latents(self) -> Tensor:
        """A picture of the concept for each attacked prompt, drawn by the untouched model: latents `[n, c, h, w]`."""
        return self.base.sample(list(self.prompts), self.steps, self.cfg, self.seed)


@dataclass(frozen=True)
class Found:
    """What an attack came back with.

    Attributes:
        cues: one for each attacked prompt, to draw with.
        embeddings: learned token vectors `[k, d]` by the word that stands for them.
        predictions: noise predictions it took, of one picture each.
        checks: pictures it drew of the guarded model while it searched.
    """

    cues: tuple[Cue, ...]
    embeddings: Mapping[str, Tensor] = field(default_factory=dict)
    predictions: int = 0
    checks: int = 0


class Attack(Protocol):
    """A published way to bring a concept back."""

    spec: MethodSpec

    def run(self, target: Target, settings: Mapping[str, Value]) -> Found:
        """Search with checked settings (`spec.settings`)."""
        ...
