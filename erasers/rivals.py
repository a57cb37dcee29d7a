"""Cross-token non-maximum suppression (Multi-Concept T2I-Zero, 2023, arXiv 2310.07419): words keep what they win.

With A_j what cross-attention gives a token j at each place, as a mean over the layer's heads, and G a Gaussian of 3 x 3
places with sigma 1,

    w = argmax_j G * A_j       place by place, over the prompt's own tokens
    A_j <- (1 - s) A_j         at places that another token wins, in every head; not renormalised

So what a layer gives loses s sum_j A_j V_j over the tokens j that lose there.

Differs from the paper, where each of several concepts keeps its places: here the concept's tokens alone can lose, to
any other token of the prompt, and not to each other. Where they win they stay. G repeats the edges.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import GuardError
from .measure.heat import attention_shares, smoothed
from .nudge import Words
from .window import Window

_SPREAD = 1.0


@dataclass(frozen=True, eq=False)
class Rivals:
    """How the concept's words are kept to the places that they win.

    Attributes:
        share: s, 0 to 1.
        window: when it acts.
    """

    share: float
    window: Window

    def lost(
        self, q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None, words: Words, size: tuple[int, int]
    ) -> Tensor:
        """What one row of a cross-attention loses, `[places, width]` float32.

        Args:
            q: `[places, width]`; k, v: `[keys, width]`.
            mask: as `attention_shares` takes it.
            words: the prompt's own tokens.
            size: height and width of the features, in places.

        Raises:
            GuardError: the keys are not of that prompt alone.
        """
        if len(k) % words.tokens:
            raise GuardError(
                f"The prompt that was read has {words.tokens} tokens, and attention is to {len(k)}.",
                "Encode the prompt with the guard's own CLIP output, and do not join its features with others.",
            )
        # Prompts of different length in one batch are repeated to a common one: a word is then there several times.
        copies, places = len(k) // words.tokens, list(words.places)
        shares = copies * attention_shares(q, k, heads, mask)[:, :, places]
        maps = shares.mean(0).T.unflatten(1, size)
        gone = shares * beaten(maps, torch.tensor(words.named, device=q.device)).flatten(1).T
        values = v.float().unflatten(-1, (heads, -1))[places]
        return self.share * torch.einsum("hpt,thd->phd", gone, values).flatten(1)


def beaten(maps: Tensor, named: Tensor) -> Tensor:
    """Where each token of maps `[t, h, w]` loses its place, bool; only those that are named `[t]` do, to the others."""
    return named[:, None, None] & ~named[smoothed(maps, _SPREAD).argmax(0)]
