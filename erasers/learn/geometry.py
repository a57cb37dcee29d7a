"""Geom-Erasing (Liu et al., ECCV 2024, arXiv 2310.05873): tokens for where a concept is that the model cannot name.

A model draws watermarks, QR codes or captions unasked, and does not know them by their names. So every cell of a grid
over the picture gets a token of its own, and pictures in which the concept's place is known teach them: a picture's
sentence y' is its caption, the concept's name, and the tokens of all cells that the concept touches.

    L = E |noise - S(x, t, y')|^2 * w,    w = T / (K + alpha (T - K)) inside,  alpha T / (K + alpha (T - K)) outside

with T places in a picture, K of them inside, so that w adds up to T; alpha above 1 lowers the weight of the dirty area.
Afterwards the name and the tokens stand in the negative prompt, and the model draws around what they say.

This is the paper's removal from a model: the tokens alone are learned. Its removal from data trains the model along
with them (learn/located.py). Regions come from any detector; loose boxes will do.

Differs from the paper: the error is in the model's own prediction space; pictures without the concept teach tokens
nothing and are left out; cells that no picture shows give no token. Grid, alpha, rate and steps are not known to us.
No official code is public.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import SettingError
from ..model import Model, TextTower, Token
from ..target import Track, untracked
from .inversion import Fit, Lesson, first_vectors, learn_vectors

_INSIDE = 0.5


@dataclass(frozen=True)
class Grid:
    """Cells over a picture, numbered row by row from the top left."""

    rows: int = 4
    columns: int = 4

    @property
    def count(self) -> int:
        """How many they are."""
        return self.rows * self.columns

    def touched(self, region: Tensor) -> list[int]:
        """The cells that a region `[h, w]` in 0..1 reaches into."""
        inside = (region > _INSIDE).float()[None]
        cells = functional.adaptive_max_pool2d(inside, (self.rows, self.columns))
        return cells.flatten().nonzero().flatten().tolist()


@dataclass(frozen=True)
class Marked:
    """Pictures in which a concept's place is known.

    Attributes:
        latents: `[p, c, h, w]`, clean.
        regions: `[p, h, w]` in 0..1, where the concept is; above a half is inside.
        captions: what each picture shows besides.
        name: what people call the concept.
    """

    latents: Tensor
    regions: Tensor
    captions: Sequence[str]
    name: str

    def __post_init__(self) -> None:
        counts = {len(self.latents), len(self.regions), len(self.captions)}
        if len(counts) > 1 or self.latents.shape[-2:] != self.regions.shape[-2:]:
            raise SettingError(
                f"There are {len(self.latents)} pictures of {tuple(self.latents.shape[-2:])}, {len(self.regions)} "
                f"regions of {tuple(self.regions.shape[-2:])} and {len(self.captions)} captions.",
                "Give a region and a caption for each picture, regions at the latents' size.",
            )


@dataclass(frozen=True)
class Places:
    """What was learned.

    Attributes:
        name: the concept's.
        vectors: `[rows * columns, d]` float32, a token for each cell.
        seen: `[rows * columns]` bool, the cells in which a picture showed the concept.
    """

    name: str
    vectors: Tensor
    seen: Tensor

    @property
    def word(self) -> Tensor:
        """The tokens for the negative prompt, `[k, d]`, behind the concept's name; to be saved as one embedding."""
        return self.vectors[self.seen]

    def negative(self, tower: TextTower) -> list[Token]:
        """The negative prompt, padded: the name and every token that was learned."""
        return sentence(tower, "", self.name, self.word)


def learn_places(
    model: Model,
    marked: Marked,
    fit: Fit,
    generator: torch.Generator,
    grid: Grid = Grid(),
    alpha: float = 2.0,
    track: Track = untracked,
) -> Places:
    """Learn location tokens; only inside `model.ready()`, which is as before.

    Args:
        alpha: weight of a place outside the concept against one inside; 1 weighs all alike.
        generator: of pictures, times and noise.
        track: goes through the steps; what it raises ends the search.

    Raises:
        SettingError: no picture shows the concept, or alpha is not positive.
        FamilyError: the model has more than one text encoder.
    """
    cells = [grid.touched(region) for region in marked.regions]
    shown = [i for i, own in enumerate(cells) if own]
    if not shown:
        raise SettingError("No region marks the concept.", "Give pictures in which a detector found it.")
    tower, weights = model.tower(), region_weights(marked.regions[shown], alpha)

    def row(i: int, vectors: Tensor) -> list[Token]:
        return sentence(tower, marked.captions[shown[i]], marked.name, vectors[cells[shown[i]]])

    start = first_vectors(tower, "", grid.count)
    learned = learn_vectors(model, Lesson(marked.latents[shown], row, weights), start, fit, generator, track)
    seen = torch.zeros(len(learned), dtype=torch.bool)
    seen[sorted({cell for own in cells for cell in own})] = True
    return Places(marked.name, learned, seen)


def region_weights(regions: Tensor, alpha: float) -> Tensor:
    """Factors of the squared error for regions `[n, h, w]` in 0..1; each picture's add up to its places.

    Raises:
        SettingError: alpha is not positive.
    """
    if not alpha > 0:
        raise SettingError(f"alpha is {alpha:g}.", "It has to be above 0; 1 weighs all places alike.")
    inside = regions > _INSIDE
    total = regions[0].numel()
    covered = inside.flatten(1).sum(1)[:, None, None]
    share = total / (covered + alpha * (total - covered))
    return torch.where(inside, share, alpha * share)


def sentence(tower: TextTower, caption: str, name: str, vectors: Tensor) -> list[Token]:
    """The padded tokens of a caption, a name and location tokens `[k, d]`; a long caption is cut for them."""
    tail: list[Token] = [*tower.content(name), *vectors]
    room = len(tower.ids("")) - 2
    return tower.padded([*tower.content(caption)[: max(room - len(tail), 0)], *tail])
