"""Self-attention that does not look into a mask (Attentive Eraser, Sun et al., AAAI 2025, arXiv 2412.12974).

With S the logits of a self-attention and m the places inside the mask, as keys,

    a place outside     softmax(S - inf m)
    a place inside      softmax(s S - inf m)     s < 1 early on: it looks more evenly at what is around it

so that what stands inside is drawn anew from what stands around it. Keys inside are left out, which is the same as
adding minus infinity to their logits, and queries are scaled, as the logits are linear in them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Redirect:
    """Where and how self-attention is redirected, in the rows of one of a guard's own prompts.

    Attributes:
        prompt: of the guard's prompts.
        mask: `[h, w]` bool, of any size.
        evenness: s, 0 to 1; 0 looks at all places alike.
        until: share of sampling at which s ends.
        blocks: parts of a UNet that it acts in, of `words.BLOCKS`.
    """

    prompt: str
    mask: Tensor
    evenness: float
    until: float
    blocks: tuple[str, ...]

    def inside(self, size: tuple[int, int]) -> Tensor:
        """Places inside the mask, `[h, w]` bool at a size: those that any of it falls on."""
        return functional.adaptive_max_pool2d(self.mask[None].float(), size)[0] > 0

    def attend(
        self, attention: Attention, q: Tensor, k: Tensor, v: Tensor, size: tuple[int, int], percent: float
    ) -> Tensor | None:
        """What a self-attention gives, redirected, `[n, places, width]`; None where nothing is left to look at.

        Args:
            attention: of queries to keys and values.
            q, k, v: `[n, places, width]`.
            size: height and width of the features, in places.
            percent: how far sampling has come.
        """
        inside = self.inside(size).flatten().to(q.device)
        around = (~inside).nonzero()[:, 0]
        if not len(around):
            return None
        if percent < self.until:
            q = torch.where(inside[:, None], self.evenness * q, q)
        return attention(q, k[:, around], v[:, around])
