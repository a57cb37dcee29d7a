"""Stacked adapters: the vendor library's product with the thin `down`, then one pass for gates, `up` and base.

The pass reads base and writes y once. In plain torch the gates, the copy of base and the accumulating product are
three passes over tensors of that size.
"""

# Launches take plain numbers for constants, and kernels are written in a language of their own.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .precision import dot_type


def stacked(x: Tensor, base: Tensor, down: Tensor, up: Tensor, gates: Tensor | None) -> Tensor:
    """As `kernels.reference.stacked`."""
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, base, down, up, gates)):
        return _Stacked.apply(x, base, down, up, gates)
    return expand(x @ down.to(x.dtype).T, base, up.to(x.dtype), gates)


def expand(inner: Tensor, base: Tensor, up: Tensor, gates: Tensor | None) -> Tensor:
    """`base + (inner * gates) up^T`.

    Args:
        inner: `[rows, tokens, R]`; any strides.
        base: `[rows, tokens, o]`; any strides.
        up: `[o, R]`; any strides.
        gates: `[rows, R]` or `[1, R]`, or None.

    Returns:
        `[rows, tokens, o]`, contiguous.
    """
    rows, tokens, width = base.shape
    y = torch.empty((rows, tokens, width), dtype=base.dtype, device=base.device)
    rank = up.shape[1]
    gate = up if gates is None else gates
    gate_row = gate.stride(0) if gates is not None and gates.shape[0] > 1 else 0
    # Matrix instructions do not take float32; what multiplies instead holds whole tiles in registers.
    largest = 32 if base.dtype == torch.float32 else 64
    block_t = min(largest, max(16, triton.next_power_of_2(tokens)))
    block_r = min(largest, max(16, triton.next_power_of_2(rank)))
    block_o = largest
    grid = (rows * triton.cdiv(tokens, block_t), triton.cdiv(width, block_o))
    _expand[grid](
        inner,
        base,
        up,
        gate,
        y,
        tokens,
        width,
        *inner.stride(),
        *base.stride(),
        *up.stride(),
        gate_row,
        gate.stride(1),
        RANK=rank,
        DOT=dot_type(inner.dtype),
        GATED=gates is not None,
        BLOCK_T=block_t,
        BLOCK_O=block_o,
        BLOCK_R=block_r,
    )
    return y


@triton.jit
def _expand(
    inner,
    base,
    up,
    gates,
    y,
    tokens,
    width,
    inner_b,
    inner_t,
    inner_r,
    base_b,
    base_t,
    base_o,
    up_o,
    up_r,
    gates_b,
    gates_r,
    RANK: tl.constexpr,
    DOT: tl.constexpr,
    GATED: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    blocks = tl.cdiv(tokens, BLOCK_T)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    t = (tl.program_id(0) % blocks) * BLOCK_T + tl.arange(0, BLOCK_T)
    o = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    t_in, o_in = t < tokens, o < width
    total = tl.zeros((BLOCK_T, BLOCK_O), dtype=tl.float32)
    for start in range(0, RANK, BLOCK_R):
        r = start + tl.arange(0, BLOCK_R)
        r_in = r < RANK
        h_at = inner + row * inner_b + t[:, None] * inner_t + r[None, :] * inner_r
        h = tl.load(h_at, mask=t_in[:, None] & r_in[None, :], other=0.0)
        if GATED:
            g = tl.load(gates + row * gates_b + r * gates_r, mask=r_in, other=0.0)
            h = (h.to(tl.float32) * g[None, :].to(tl.float32)).to(h.dtype)
        w_at = up + r[:, None] * up_r + o[None, :].to(tl.int64) * up_o
        w = tl.load(w_at, mask=r_in[:, None] & o_in[None, :], other=0.0)
        total = tl.dot(h.to(DOT), w.to(DOT), total, input_precision="ieee")
    inside = t_in[:, None] & o_in[None, :]
    at = base + row * base_b + t[:, None] * base_t + o[None, :] * base_o
    sum_ = tl.load(at, mask=inside, other=0.0).to(tl.float32) + total
    out = y + row * tokens * width + t[:, None] * width + o[None, :]
    tl.store(out, sum_.to(y.dtype.element_ty), mask=inside)


class _Stacked(torch.autograd.Function):
    """The gradients are thin products, which the vendor library does; `inner` is computed again for them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, base: Tensor, down: Tensor, up: Tensor, gates: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, down, up, gates)
        ctx.base_dtype = base.dtype
        return expand(x @ down.to(x.dtype).T, base, up.to(x.dtype), gates)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, down, up, gates = ctx.saved_tensors
        to_x, to_base, to_down, to_up, to_gates = ctx.needs_input_grad
        grad = grads[0]
        g = grad.to(x.dtype)
        a, b = down.to(x.dtype), up.to(x.dtype)
        factor = 1 if gates is None else gates[:, None]
        past_up = g @ b
        past_gates = (past_up * factor).to(x.dtype)
        inner = x @ a.T if to_up or to_gates else x
        found: list[Tensor | None] = [None] * 5
        if to_x:
            found[0] = past_gates @ a
        if to_base:
            found[1] = grad
        if to_down:
            found[2] = (past_gates.flatten(0, 1).T @ x.flatten(0, 1)).to(down.dtype)
        if to_up:
            gated = (inner * factor).to(x.dtype)
            found[3] = (g.flatten(0, 1).T @ gated.flatten(0, 1)).to(up.dtype)
        if gates is not None and to_gates:
            found[4] = (past_up.float() * inner.float()).sum(1).sum_to_size(gates.shape).to(gates.dtype)
        return tuple(found)
