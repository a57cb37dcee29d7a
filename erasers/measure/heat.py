"""Where a picture looks at words: their tokens in a prompt, and heat maps as pictures."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import SettingError
from ..model import Token
from ..phrases import places_of

_HEAT = 0.65
"""Share of the heat in a map over a picture; the rest is the picture, in grey."""
_SMALL = 1e-12


def word_places(chunks: Sequence[Sequence[Token]], word: str, ids: Sequence[int]) -> list[int]:
    """Positions of a word's tokens in a prompt's chunks laid end to end, wherever it stands.

    Raises:
        SettingError: the word is not in the prompt.
    """
    found, offset = [], 0
    for chunk in chunks:
        for start in places_of(chunk, ids):
            found += range(offset + start, offset + start + len(ids))
        offset += len(chunk)
    if not found:
        raise SettingError(f"'{word}' is not in the prompt.", "Write words as they stand in it.")
    return sorted(set(found))


def word_shares(q: Tensor, k: Tensor, heads: int, mask: Tensor | None, places: Sequence[Sequence[int]]) -> Tensor:
    """How much of the attention each of some words gets, `[words, queries]`: the mean of its tokens and of all heads.

    Args:
        q, k, mask: as `attention_shares` takes them.
        places: keys of each word's tokens.
    """
    shares = attention_shares(q, k, heads, mask).mean(0)
    return torch.stack([shares[:, list(own)].mean(1) for own in places])


def attention_shares(q: Tensor, k: Tensor, heads: int, mask: Tensor | None) -> Tensor:
    """How each head shares its attention out, `[heads, queries, keys]` float32.

    Args:
        q, k: of one row, `[queries or keys, width]`.
        mask: what is added to the products, to broadcast with `[heads, queries, keys]`, or bool; None for nothing.
    """
    queries, keys = (x.float().unflatten(-1, (heads, -1)).transpose(0, 1) for x in (q, k))
    products = queries @ keys.transpose(1, 2) * queries.shape[-1] ** -0.5
    if mask is not None:
        products = products.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else products + mask
    return products.softmax(-1)


def smoothed(maps: Tensor, spread: float) -> Tensor:
    """Maps `[t, h, w]` under a Gaussian of 3 x 3 places whose sigma is `spread`; edges are repeated."""
    side = torch.exp(-(torch.arange(-1, 2, device=maps.device) ** 2) / (2 * spread**2)).to(maps)
    kernel = side[:, None] * side / side.sum() ** 2
    padded = functional.pad(maps[:, None], (1, 1, 1, 1), mode="replicate")
    return functional.conv2d(padded, kernel[None, None])[:, 0]


def heat_pictures(maps: Tensor, pictures: Tensor | None) -> Tensor:
    """Heat maps `[n, h, w]`, each from its least (black) to its most (white), as pictures `[n, H, W, 3]` in 0..1.

    Args:
        pictures: `[n, H, W, 3]` to lay them over, or None.
    """
    least, most = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    heat = (maps - least) / (most - least).clamp(min=_SMALL)
    glow = torch.stack([(3 * heat - i).clamp(0, 1) for i in range(3)], dim=-1)
    return glow if pictures is None else _HEAT * glow + (1 - _HEAT) * pictures.mean(-1, keepdim=True)


def fitted_map(heat: Tensor, height: int, width: int) -> Tensor:
    """Maps `[..., h, w]` at another size, bilinearly."""
    flat = heat.reshape(-1, 1, *heat.shape[-2:])
    return functional.interpolate(flat, (height, width), mode="bilinear").reshape(*heat.shape[:-2], height, width)
