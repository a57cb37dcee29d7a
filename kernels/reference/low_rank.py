"""Adding a low-rank map to features."""

from __future__ import annotations

from torch import Tensor


def add_low_rank(x: Tensor, down: Tensor, up: Tensor, bias: Tensor | None, strength: float) -> Tensor:
    """`y = x + s * ((x down^T) up^T + b)`, computed in the factors' dtype and returned in x's.

    Args:
        x: `[..., d]`, any floating dtype; not changed.
        down: `[r, d]`.
        up: `[o, r]` with o = d.
        bias: `[o]`, or None.
        strength: s; 0 returns `x` itself.
    """
    if strength == 0:
        return x
    wide = x.to(down.dtype)
    delta = (wide @ down.T) @ up.T
    if bias is not None:
        delta = delta + bias
    return (wide + strength * delta).to(x.dtype)
