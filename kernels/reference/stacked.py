"""Many gated low-rank maps beside a projection."""

from __future__ import annotations

from torch import Tensor


def stacked(x: Tensor, base: Tensor, down: Tensor, up: Tensor, gates: Tensor | None) -> Tensor:
    """`y = base + ((x down^T) * gates) up^T`; shapes and dtypes as in `kernels.stacked`, with x `[rows, tokens, d]`."""
    inner = x @ down.to(x.dtype).T
    if gates is not None:
        # The product of a half and a float32 tensor is float32: one rounding, not two.
        inner = (inner * gates[:, None]).to(x.dtype)
    return base + (inner @ up.to(x.dtype).T).to(base.dtype)
