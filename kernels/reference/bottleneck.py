"""A bottleneck beside a layer: up gelu(down x)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def bottleneck(x: Tensor, down: Tensor, down_bias: Tensor, up: Tensor, up_bias: Tensor) -> Tensor:
    """What the bottleneck adds, in the dtype of x.

    Args:
        x: `[..., c]`.
        down: `[r, c]`; down_bias: `[r]`.
        up: `[c, r]`; up_bias: `[c]`.
    """
    inner = functional.gelu(functional.linear(x, down.to(x), down_bias.to(x)))
    return functional.linear(inner, up.to(x), up_bias.to(x))
