"""Words of a prompt turned up or down in attention, by name.

With A the attention of a picture's places to the prompt's tokens and c the weight of a token j, either

    A'_j = c A_j                                  its share of the output is scaled, the rest stays
    A'   = softmax(Q K^T / sqrt(d) + log c_j)     shares are scaled and add up to 1 again

The first is Prompt-to-Prompt's re-weighting (Hertz et al., ICLR 2023, arXiv 2208.01626). It equals scaling the token's
value by c. In a UNet values are linear in the features, without a bias, so the features may be scaled before them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from .errors import ConceptError, SettingError
from .model import TextTower, Token
from .window import Window

BLOCKS = ("input", "middle", "output")
_LEAST, _MOST = -2.0, 10.0


@dataclass(frozen=True, eq=False)
class WordPart:
    """Which words weigh what, and where.

    Attributes:
        tower: the text encoders whose tokens the prompt is made of.
        words: phrases and their weights.
        end_weight: weight of what stands behind the prompt's own tokens, the end token, padding and a template's end,
            which carry a summary of the prompt in encoders that read from left to right.
        window: when it acts.
        blocks: parts of a UNet that it acts in, of BLOCKS; all of them in other models.
        renormalise: whether shares add up to 1 again.
        region: where in the picture it acts, `[h, w]` in 0..1, or None for everywhere.
    """

    tower: TextTower
    words: tuple[tuple[str, float], ...]
    end_weight: float = 1.0
    window: Window = field(default_factory=Window)
    blocks: tuple[str, ...] = BLOCKS
    renormalise: bool = False
    region: Tensor | None = None

    def __post_init__(self) -> None:
        for phrase, weight in self.words:
            if not self.tower.content(phrase):
                raise ConceptError(f"The text encoder reads nothing in '{phrase}'.", "Write words of its language.")
            if self.renormalise and weight < 0:
                raise SettingError(f"'{phrase}' has weight {weight:g}.", "Where shares add up to 1, use 0 or more.")

    def read(self, chunks: Sequence[Sequence[Token]]) -> Tensor | None:
        """The weight of each of a prompt's tokens, `[tokens]`; None where none of the words is in it."""
        found = [self._weights(chunk) for chunk in chunks]
        if all(own is None for own in found):
            return None
        return torch.cat([torch.ones(len(c)) if own is None else own for own, c in zip(found, chunks, strict=True)])

    def _weights(self, chunk: Sequence[Token]) -> Tensor | None:
        weights, found = torch.ones(len(chunk)), False
        for phrase, weight in self.words:
            for place in self.tower.spans(chunk, phrase):
                weights[place.start : place.stop], found = weight, True
        if not found:
            return None
        weights[self.tower.own(chunk).stop :] = self.end_weight
        return weights


def parse_words(text: str) -> tuple[tuple[str, float], ...]:
    """Lines of `word: weight`; a word alone weighs 0.

    Raises:
        SettingError: there is no word, a weight is no number or out of -2..10, or a word comes twice.
    """
    found = []
    for line in filter(None, (line.strip() for line in text.splitlines())):
        phrase, weight = line.rsplit(":", 1) if ":" in line else (line, "0")
        try:
            value = float(weight)
        except ValueError:
            raise SettingError(f"'{line}' has no weight behind its colon.", "Write e.g. 'ball: 0.2'.") from None
        if not _LEAST <= value <= _MOST or not phrase.strip():
            raise SettingError(f"'{line}' is no word with a weight.", f"Weights go from {_LEAST:g} to {_MOST:g}.")
        found.append((phrase.strip(), value))
    if not found:
        raise SettingError("There is no word to reweight.", "Write one per line, e.g. 'ball: 0.2'.")
    names = sorted(phrase for phrase, _ in found)
    if any(one == other for one, other in pairwise(names)):
        raise SettingError("A word is named twice.", "Give each word one weight.")
    return tuple(found)
