"""Cross-attention with weighted tokens by torch's own attention, which never keeps the map."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional


def reweighted(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: Tensor | None, chosen: Tensor | None, how: str
) -> tuple[Tensor, Tensor | None]:
    """As `kernels.reference.reweighted`, without `max`.

    Weights after softmax are scaled rows of v. A sum of probabilities is attention to a column of v that is 1 at
    the chosen tokens and 0 elsewhere. Where those columns make v wider than q, zeros keep all three as wide,
    which the fused kernels ask for.
    """
    values = v if scale is None else v * scale[:, None, :, None].to(v.dtype)
    mask = None if bias is None else bias[:, None, None].to(q.dtype).expand(-1, 1, q.shape[2], -1)
    factor, width = 1 / math.sqrt(q.shape[-1]), v.shape[-1]
    if chosen is None:
        return functional.scaled_dot_product_attention(q, k, values, mask, scale=factor), None
    groups = chosen.transpose(1, 2)[:, None].to(v.dtype).expand(-1, v.shape[1], -1, -1)
    values = torch.cat([values, groups], -1)
    common = -(-max(q.shape[-1], values.shape[-1]) // 8) * 8
    q, k, values = (functional.pad(t, (0, common - t.shape[-1])) for t in (q, k, values))
    out = functional.scaled_dot_product_attention(q, k, values, mask, scale=factor)
    read = out[..., width : width + chosen.shape[1]]
    return out[..., :width], read if read.dtype == torch.float64 else read.float()
