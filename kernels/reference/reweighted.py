"""Cross-attention with weighted tokens, its map built in full."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def reweighted(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: Tensor | None, chosen: Tensor | None, how: str
) -> tuple[Tensor, Tensor | None]:
    """`P = softmax(q k^T / sqrt(e) + bias)`, `out = P (scale * v)`, and what is read off P.

    Shapes as in `kernels.reweighted`; `chosen` `[b, m, t]` bool or None, `how` says what is read of it.
    """
    logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if bias is not None:
        logits = logits + bias[:, None, None]
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    probabilities = logits.softmax(-1, dtype=wide)
    values = v if scale is None else v * scale[:, None, :, None]
    out = (probabilities.to(v.dtype) @ values.to(v.dtype)).to(q.dtype)
    if chosen is None:
        return out, None
    if how == "sum":
        return out, probabilities @ chosen[:, None].transpose(-1, -2).to(wide)
    picked = [probabilities.masked_fill(~group[:, None, None], 0).amax(-1) for group in chosen.unbind(1)]
    return out, torch.stack(picked, -1)
