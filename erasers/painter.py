"""What a picture is drawn from, and what draws it. Each host implements `Painter` once.

An evaluation draws from prompts; an attack may draw from whatever it found: tokens that no prompt spells, text
features, or several of them weighed against each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor
from torch.nn import functional

from .errors import SettingError
from .model import Token
from .spec import Value


@dataclass(frozen=True, eq=False)
class Spelling:
    """A prompt as the text encoder's padded tokens, some of which may be vectors that were learned."""

    tokens: tuple[Token, ...]


Source = str | Spelling | Tensor
"""A prompt, its tokens, or text features `[tokens, d]` as they leave the text encoder."""


@dataclass(frozen=True, eq=False)
class Cue:
    """Sources and their weights a_k: the model draws with eps_u + w * sum_k a_k (eps(c_k) - eps_u).

    `Cue(((1.0, prompt),))` is the prompt itself. The weights need not add up to 1.
    """

    parts: tuple[tuple[float, Source], ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise SettingError("There is nothing to draw from.", "Give a prompt.")

    @property
    def text(self) -> str:
        """The cue as people read it: prompts with their weights, and a sign for what has no words."""
        shown = [(weight, part if isinstance(part, str) else "<embedding>") for weight, part in self.parts]
        return shown[0][1] if len(shown) == 1 and shown[0][0] == 1 else " ".join(f"{w:+g}*[{t}]" for w, t in shown)


@dataclass(frozen=True, eq=False)
class Shot:
    """One picture to draw.

    Attributes:
        cue: what to draw from.
        seed: of its noise; the same for the same seed, whatever stands beside it in a batch.
        cfg: guidance scale; None for the painter's own.
    """

    cue: Cue
    seed: int
    cfg: float | None = None


def prompted(prompt: str) -> Cue:
    """The cue of an ordinary prompt."""
    return Cue(((1.0, prompt),))


class Painter(Protocol):
    """Draws pictures with one model, its guards and its erasers included."""

    def paint(self, shots: Sequence[Shot]) -> Tensor:
        """One picture per shot, `[n, 3, h, w]` float32 in 0..1 on the CPU."""
        ...

    def settings(self) -> Mapping[str, Value]:
        """Sampler, schedule, steps, guidance, size and whatever else a picture depends on beside model and shot."""
        ...

    def sketch(self, prompts: Sequence[str]) -> Tensor:
        """`[k]` float32: numbers that tell this model from another, from what it draws for prompts."""
        ...


def alike(shots: Sequence[Shot], most: int) -> list[list[int]]:
    """Batches of at most `most`, as places of shots that differ in their sources and seeds only."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for place, shot in enumerate(shots):
        groups.setdefault((shot.cfg, *(weight for weight, _ in shot.cue.parts)), []).append(place)
    return [group[i : i + most] for group in groups.values() for i in range(0, len(group), most)]


def sketch(latents: Tensor) -> Tensor:
    """Block means of latents `[n, c, h, w]`, or `[n, c, frames, h, w]`, `[k]` float32 on the CPU."""
    return functional.adaptive_avg_pool2d(latents.float().flatten(1, -3), 4).flatten().cpu()
