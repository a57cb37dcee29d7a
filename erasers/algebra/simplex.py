"""The probability simplex: rows that are not negative and add up to 1."""

from __future__ import annotations

import torch
from torch import Tensor


def project_simplex(rows: Tensor) -> Tensor:
    """The nearest point of the simplex to each row.

    It is max(u - tau, 0) with the one tau for which it adds up to 1; sorted, the coordinates above tau are the longest
    run u_1 >= ... >= u_m that still holds u_m > (u_1 + ... + u_m - 1) / m, and tau is that quotient. Exact, unlike
    bisection.

    Args:
        rows: `[..., v]`, finite.

    Returns:
        `[..., v]`, of the same dtype; found in float64, since sums of a vocabulary's length lose digits.
    """
    wide = rows.double()
    ordered = wide.sort(-1, descending=True).values
    means = (ordered.cumsum(-1) - 1) / torch.arange(1, rows.shape[-1] + 1, device=rows.device)
    above = (ordered > means).sum(-1, keepdim=True)
    return (wide - means.gather(-1, above - 1)).clamp(min=0).to(rows.dtype)
