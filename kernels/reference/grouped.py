"""Low-rank changes of many weights, one after the other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def add_low_rank_(
    weights: Sequence[Tensor], sources: Sequence[Tensor], downs: Sequence[Tensor], ups: Sequence[Tensor], s: float
) -> None:
    """`W_l <- S_l + s B_l A_l`, summed in float32 (float64 for float64) and rounded once; S_l may be W_l itself."""
    for weight, source, down, up in zip(weights, sources, downs, ups, strict=True):
        wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
        if weight.dtype == wide:
            torch.addmm(source, up.to(wide), down.to(wide), alpha=s, out=weight)
        else:
            changed = torch.addmm(source.to(wide), up.to(wide), down.to(wide), alpha=s)
            weight.copy_(saturated(changed, weight.dtype))


def saturated(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Values in another dtype; those beyond an 8-bit format's largest take its largest, not NaN."""
    if dtype.itemsize == 1:
        values = values.clamp(-torch.finfo(dtype).max, torch.finfo(dtype).max)
    return values.to(dtype)
