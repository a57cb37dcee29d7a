"""Weighted cross-attention in one pass over the text: neither the map nor its gradient is ever written.

Softmax runs online over blocks of tokens (arXiv 2205.14135). A sum of chosen probabilities is carried along with
the output; the largest one is exp(largest chosen logit - log-sum-exp), so only that logit and its place are kept.
The backward pass computes the probabilities again from the log-sum-exp. It gives a maximum's gradient to one token.
"""

# Launches take plain numbers for constants, and kernels are written in a language of their own.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .precision import dot_type

BLOCK_N, BLOCK_T, CHUNK = 64, 32, 512
"""Queries and tokens of a tile; queries that one program of the backward pass sums over. Not yet tuned."""
MODES = {"none": 0, "sum": 1, "max": 2}


def reweighted(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: Tensor | None, chosen: Tensor | None, how: str
) -> tuple[Tensor, Tensor | None]:
    """As `kernels.reference.reweighted`."""
    k, v = k.to(q.dtype), v.to(q.dtype)
    bias = q.new_zeros(q.shape[0], k.shape[2], dtype=torch.float32) if bias is None else bias.float()
    scale = torch.ones_like(bias) if scale is None else scale.float()
    marks = bias.new_zeros(q.shape[0], 1, k.shape[2], dtype=torch.int8) if chosen is None else chosen.to(torch.int8)
    mode = MODES[how]
    out, read = _Reweighted.apply(q, k, v, bias.contiguous(), scale.contiguous(), marks.contiguous(), mode)
    return out, read if mode else None


class _Reweighted(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: Tensor, marks: Tensor, mode: int
    ) -> tuple[Tensor, Tensor]:
        b, h, n, _ = q.shape
        groups = marks.shape[1]
        out = torch.empty((b, h, n, v.shape[3]), dtype=q.dtype, device=q.device)
        lse = torch.empty((b, h, n), dtype=torch.float32, device=q.device)
        read = torch.empty((b, h, n, groups), dtype=torch.float32, device=q.device)
        place = torch.empty((b, h, n, groups), dtype=torch.int32, device=q.device)
        if out.numel():
            _forward[(triton.cdiv(n, BLOCK_N), b * h)](
                q,
                k,
                v,
                bias,
                scale,
                marks,
                out,
                lse,
                read,
                place,
                n,
                *_strides(q, k, v),
                **_shape(q, k, v, marks, mode),
            )
        ctx.save_for_backward(q, k, v, bias, scale, marks, out, lse, read, place)
        ctx.mode = mode
        return out, read

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, v, bias, scale, marks, out, lse, read, place = ctx.saved_tensors
        b, h, n, _ = q.shape
        to_out, to_read = (grad.contiguous() for grad in grads)
        # The row sums of P * dP, from what the forward pass kept.
        delta = (to_out.float() * out.float()).sum(-1)
        if ctx.mode:
            delta = delta + (to_read * read).sum(-1)
        shared = (to_out, to_read, lse, delta, place, n, *_strides(q, k, v))
        shape = _shape(q, k, v, marks, ctx.mode)
        dq = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        chunks = triton.cdiv(n, CHUNK)
        dk = torch.empty((chunks, *k.shape), dtype=torch.float32, device=q.device)
        pv = torch.empty((chunks, *v.shape), dtype=torch.float32, device=q.device)
        rows = torch.empty((chunks, b, h, k.shape[2]), dtype=torch.float32, device=q.device)
        if dq.numel():
            _to_queries[(triton.cdiv(n, BLOCK_N), b * h)](q, k, v, bias, scale, marks, dq, *shared, **shape)
            grid = (triton.cdiv(k.shape[2], BLOCK_T), b * h, chunks)
            _to_tokens[grid](q, k, v, bias, scale, marks, dk, pv, rows, *shared, **shape, CHUNK=CHUNK)
        dk, pv = dk.sum(0), pv.sum(0)
        to_scale = (pv * v.float()).sum((1, 3)) if ctx.needs_input_grad[4] else None
        to_v = (pv * scale[:, None, :, None]).to(v.dtype)
        return dq, dk.to(k.dtype), to_v, rows.sum((0, 2)), to_scale, None, None


def _strides(*tensors: Tensor) -> list[int]:
    """Strides of every tensor, all but the last in units of `_step`."""
    step = _step(*tensors)
    return [s for tensor in tensors for s in (*(stride // step for stride in tensor.stride()[:3]), tensor.stride(3))]


def _step(*tensors: Tensor) -> int:
    """8 where all rows begin at multiples of 16 bytes, so that loads may be wide; heads of 40 do not fill 16 halves."""
    outer = [stride for tensor in tensors for stride in tensor.stride()[:3]]
    return 8 if all(stride % 8 == 0 for stride in outer) else 1


def _shape(q: Tensor, k: Tensor, v: Tensor, marks: Tensor, mode: int) -> dict[str, Any]:
    """What a kernel is compiled for."""
    groups = marks.shape[1]
    return {
        "FACTOR": 1 / math.sqrt(q.shape[3]),
        "HEADS": q.shape[1],
        "TOKENS": k.shape[2],
        "E": q.shape[3],
        "F": v.shape[3],
        "M": groups,
        "MODE": mode,
        "STEP": _step(q, k, v),
        "DOT": dot_type(q.dtype),
        "BLOCK_N": BLOCK_N,
        "BLOCK_T": BLOCK_T,
        "BLOCK_E": max(16, triton.next_power_of_2(q.shape[3])),
        "BLOCK_F": max(16, triton.next_power_of_2(v.shape[3])),
        "BLOCK_M": triton.next_power_of_2(groups),
        "num_stages": 2,
    }


@triton.jit
def _tile(at, row, col, row_stride, col_stride, rows, cols):
    """A tile of a matrix, zero outside it."""
    inside = (row[:, None] < rows) & (col[None, :] < cols)
    return tl.load(at + row[:, None].to(tl.int64) * row_stride + col[None, :] * col_stride, mask=inside, other=0.0)


@triton.jit
def _logits(q, k, bias, t, FACTOR: tl.constexpr, TOKENS: tl.constexpr, DOT: tl.constexpr):
    """Logits `[queries, tokens]` of a tile; -inf past the last token."""
    s = tl.dot(q.to(DOT), tl.trans(k.to(DOT)), input_precision="ieee") * FACTOR
    return s + tl.load(bias + t, mask=t < TOKENS, other=float("-inf"))[None, :]


@triton.jit
def _chosen(marks, t, TOKENS: tl.constexpr, M: tl.constexpr, BLOCK_M: tl.constexpr):
    """Which tokens belong to which group, `[groups, tokens]`."""
    m = tl.arange(0, BLOCK_M)
    inside = (m[:, None] < M) & (t[None, :] < TOKENS)
    return tl.load(marks + m[:, None] * TOKENS + t[None, :], mask=inside, other=0) != 0


@triton.jit
def _forward(
    q, k, v, bias, scale, marks, out, lse, read, place, n,
    q_b, q_h, q_n, q_e, k_b, k_h, k_t, k_e, v_b, v_h, v_t, v_f,
    FACTOR: tl.constexpr, HEADS: tl.constexpr, TOKENS: tl.constexpr, E: tl.constexpr, F: tl.constexpr,
    M: tl.constexpr, MODE: tl.constexpr, STEP: tl.constexpr, DOT: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    both = tl.program_id(1).to(tl.int64)
    b, h = both // HEADS, both % HEADS
    i = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    e, f, m = tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_F), tl.arange(0, BLOCK_M)
    queries = _tile(q + (b * q_b + h * q_h) * STEP, i, e, q_n * STEP, q_e, n, E)
    top = tl.full((BLOCK_N,), float("-inf"), tl.float32)
    mass = tl.zeros((BLOCK_N,), tl.float32)
    total = tl.zeros((BLOCK_N, BLOCK_F), tl.float32)
    sums = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    best = tl.full((BLOCK_N, BLOCK_M), float("-inf"), tl.float32)
    where = tl.full((BLOCK_N, BLOCK_M), -1, tl.int32)
    for start in range(0, TOKENS, BLOCK_T):
        t = start + tl.arange(0, BLOCK_T)
        keys = _tile(k + (b * k_b + h * k_h) * STEP, t, e, k_t * STEP, k_e, TOKENS, E)
        s = _logits(queries, keys, bias + b * TOKENS, t, FACTOR, TOKENS, DOT)
        higher = tl.maximum(top, tl.max(s, 1))
        # Tokens may be shut out by -inf, a whole block of them too: -inf - -inf is no number.
        pivot = tl.where(higher == float("-inf"), 0.0, higher)
        p = tl.exp(s - pivot[:, None])
        shrink = tl.exp(top - pivot)
        mass = mass * shrink + tl.sum(p, 1)
        weight = tl.load(scale + b * TOKENS + t, mask=t < TOKENS, other=0.0)
        values = _tile(v + (b * v_b + h * v_h) * STEP, t, f, v_t * STEP, v_f, TOKENS, F)
        total = tl.dot(
            (p * weight[None, :]).to(queries.dtype).to(DOT),
            values.to(DOT),
            total * shrink[:, None],
            input_precision="ieee",
        )
        if MODE == 1:
            group = _chosen(marks + b * M * TOKENS, t, TOKENS, M, BLOCK_M)
            sums = sums * shrink[:, None] + tl.sum(tl.where(group[None, :, :], p[:, None, :], 0.0), 2)
        if MODE == 2:
            group = _chosen(marks + b * M * TOKENS, t, TOKENS, M, BLOCK_M)
            theirs = tl.where(group[None, :, :], s[:, None, :], float("-inf"))
            found = tl.max(theirs, 2)
            where = tl.where(found > best, start + tl.argmax(theirs, 2), where)
            best = tl.maximum(best, found)
        top = higher
    at = both * n + i
    tl.store(out + at[:, None] * F + f[None, :], (total / mass[:, None]).to(out.dtype.element_ty),
             mask=(i[:, None] < n) & (f[None, :] < F))  # fmt: skip
    logsum = top + tl.log(mass)
    tl.store(lse + at, logsum, mask=i < n)
    if MODE != 0:
        at_m, in_m = at[:, None] * M + m[None, :], (i[:, None] < n) & (m[None, :] < M)
        if MODE == 1:
            tl.store(read + at_m, sums / mass[:, None], mask=in_m)
        else:
            tl.store(read + at_m, tl.exp(best - logsum[:, None]), mask=in_m)
            tl.store(place + at_m, where, mask=in_m)


@triton.jit
def _slopes(
    p, values, weight, grad, t, marks, to_read, delta, place, at, n, i,
    TOKENS: tl.constexpr, M: tl.constexpr, MODE: tl.constexpr, DOT: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Gradients with respect to the logits, `[queries, tokens]`: P (dP - delta)."""
    dp = tl.dot(grad.to(DOT), tl.trans(values.to(DOT)), input_precision="ieee") * weight[None, :]
    if MODE != 0:
        m = tl.arange(0, BLOCK_M)
        at_m, in_m = at[:, None] * M + m[None, :], (i[:, None] < n) & (m[None, :] < M)
        wanted = tl.load(to_read + at_m, mask=in_m, other=0.0)
        if MODE == 1:
            group = _chosen(marks, t, TOKENS, M, BLOCK_M)[None, :, :]
        else:
            group = tl.load(place + at_m, mask=in_m, other=-1)[:, :, None] == t[None, None, :]
        dp += tl.sum(tl.where(group, wanted[:, :, None], 0.0), 1)
    return p * (dp - tl.load(delta + at, mask=i < n, other=0.0)[:, None])


@triton.jit
def _to_queries(
    q, k, v, bias, scale, marks, dq, to_out, to_read, lse, delta, place, n,
    q_b, q_h, q_n, q_e, k_b, k_h, k_t, k_e, v_b, v_h, v_t, v_f,
    FACTOR: tl.constexpr, HEADS: tl.constexpr, TOKENS: tl.constexpr, E: tl.constexpr, F: tl.constexpr,
    M: tl.constexpr, MODE: tl.constexpr, STEP: tl.constexpr, DOT: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    both = tl.program_id(1).to(tl.int64)
    b, h = both // HEADS, both % HEADS
    i = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    e, f = tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_F)
    at = both * n + i
    queries = _tile(q + (b * q_b + h * q_h) * STEP, i, e, q_n * STEP, q_e, n, E)
    grad = _tile(to_out + both * n * F, i, f, F, 1, n, F)
    logsum = tl.load(lse + at, mask=i < n, other=0.0)
    total = tl.zeros((BLOCK_N, BLOCK_E), tl.float32)
    for start in range(0, TOKENS, BLOCK_T):
        t = start + tl.arange(0, BLOCK_T)
        keys = _tile(k + (b * k_b + h * k_h) * STEP, t, e, k_t * STEP, k_e, TOKENS, E)
        values = _tile(v + (b * v_b + h * v_h) * STEP, t, f, v_t * STEP, v_f, TOKENS, F)
        weight = tl.load(scale + b * TOKENS + t, mask=t < TOKENS, other=0.0)
        p = tl.exp(_logits(queries, keys, bias + b * TOKENS, t, FACTOR, TOKENS, DOT) - logsum[:, None])
        ds = _slopes(p, values, weight, grad, t, marks + b * M * TOKENS, to_read, delta, place, at, n, i,
                     TOKENS, M, MODE, DOT, BLOCK_M)  # fmt: skip
        total = tl.dot(ds.to(queries.dtype).to(DOT), keys.to(DOT), total, input_precision="ieee")
    tl.store(dq + at[:, None] * E + e[None, :], (total * FACTOR).to(dq.dtype.element_ty),
             mask=(i[:, None] < n) & (e[None, :] < E))  # fmt: skip


@triton.jit
def _to_tokens(
    q, k, v, bias, scale, marks, dk, pv, rows, to_out, to_read, lse, delta, place, n,
    q_b, q_h, q_n, q_e, k_b, k_h, k_t, k_e, v_b, v_h, v_t, v_f,
    FACTOR: tl.constexpr, HEADS: tl.constexpr, TOKENS: tl.constexpr, E: tl.constexpr, F: tl.constexpr,
    M: tl.constexpr, MODE: tl.constexpr, STEP: tl.constexpr, DOT: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_M: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Sums over one chunk of queries: dK, P^T dOut and the gradient of the bias."""
    both = tl.program_id(1).to(tl.int64)
    b, h = both // HEADS, both % HEADS
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    e, f = tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_F)
    keys = _tile(k + (b * k_b + h * k_h) * STEP, t, e, k_t * STEP, k_e, TOKENS, E)
    values = _tile(v + (b * v_b + h * v_h) * STEP, t, f, v_t * STEP, v_f, TOKENS, F)
    weight = tl.load(scale + b * TOKENS + t, mask=t < TOKENS, other=0.0)
    to_keys = tl.zeros((BLOCK_T, BLOCK_E), tl.float32)
    to_values = tl.zeros((BLOCK_T, BLOCK_F), tl.float32)
    to_bias = tl.zeros((BLOCK_T,), tl.float32)
    for start in range(0, CHUNK, BLOCK_N):
        i = tl.program_id(2) * CHUNK + start + tl.arange(0, BLOCK_N)
        at = both * n + i
        queries = _tile(q + (b * q_b + h * q_h) * STEP, i, e, q_n * STEP, q_e, n, E)
        grad = _tile(to_out + both * n * F, i, f, F, 1, n, F)
        # Queries past the last one get no mass.
        logsum = tl.load(lse + at, mask=i < n, other=float("inf"))
        p = tl.exp(_logits(queries, keys, bias + b * TOKENS, t, FACTOR, TOKENS, DOT) - logsum[:, None])
        ds = _slopes(p, values, weight, grad, t, marks + b * M * TOKENS, to_read, delta, place, at, n, i,
                     TOKENS, M, MODE, DOT, BLOCK_M)  # fmt: skip
        to_keys = tl.dot(tl.trans(ds).to(queries.dtype).to(DOT), queries.to(DOT), to_keys, input_precision="ieee")
        to_values = tl.dot(tl.trans(p).to(queries.dtype).to(DOT), grad.to(DOT), to_values, input_precision="ieee")
        to_bias += tl.sum(ds, 0)
    part = tl.program_id(2).to(tl.int64) * tl.num_programs(1) + both
    at_t = part * TOKENS + t
    inside = t < TOKENS
    tl.store(dk + at_t[:, None] * E + e[None, :], to_keys * FACTOR, mask=inside[:, None] & (e[None, :] < E))
    tl.store(pv + at_t[:, None] * F + f[None, :], to_values, mask=inside[:, None] & (f[None, :] < F))
    tl.store(rows + at_t, to_bias, mask=inside)
