"""Low-rank changes of all weights in one launch.

Weights differ in place and shape, so a table holds their addresses, sizes and strides; each program finds its
weight by its number among the tiles. A weight is read once and written once.
"""

# Launches take plain numbers for constants, and kernels are written in a language of their own.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .precision import dot_type

BLOCK_O, BLOCK_D = 64, 64
"""Rows and columns of a tile; not yet tuned."""
COLUMNS = 15
_TYPES = {
    torch.float32: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float8_e4m3fn: tl.float8e4nv,
    torch.float8_e5m2: tl.float8e5,
}


def add_low_rank_(
    weights: Sequence[Tensor], sources: Sequence[Tensor], downs: Sequence[Tensor], ups: Sequence[Tensor], s: float
) -> None:
    """As `kernels.reference.grouped`; one launch per dtype of the weights."""
    for dtype in dict.fromkeys(weight.dtype for weight in weights):
        own = [i for i, weight in enumerate(weights) if weight.dtype == dtype]
        factors = {t.dtype for i in own for t in (downs[i], ups[i])}
        common = factors.pop() if len(factors) == 1 and not any(f.itemsize == 1 for f in factors) else torch.float32
        # The casts live until the launch is queued: the table knows addresses only.
        cast = {id(t): t.to(common) for i in own for t in (downs[i], ups[i])}
        layers = [(weights[i], sources[i], cast[id(downs[i])], cast[id(ups[i])]) for i in own]
        _launch(layers, s, dtype, common)


def _launch(
    layers: Sequence[tuple[Tensor, Tensor, Tensor, Tensor]], s: float, dtype: torch.dtype, common: torch.dtype
) -> None:
    device = layers[0][0].device
    rows, starts, rank = [], [0], 1
    for weight, source, down, up in layers:
        out, width = weight.shape
        tensors = (weight, source, down, up)
        strides = [stride for tensor in tensors for stride in tensor.stride()]
        rows.append([*(tensor.data_ptr() for tensor in tensors), out, width, len(down), *strides])
        starts.append(starts[-1] + triton.cdiv(out, BLOCK_O) * triton.cdiv(width, BLOCK_D))
        rank = max(rank, len(down))
    aligned = all(_aligned(tensor) for layer in layers for tensor in (layer[0], layer[1], layer[2]))
    # The first tile of every layer; past the last one, numbers that no program has.
    count = triton.next_power_of_2(len(layers))
    first = starts[:-1] + [2**31 - 1] * (count - len(layers))
    _add[(starts[-1],)](
        torch.tensor(rows, dtype=torch.int64).to(device),
        torch.tensor(first, dtype=torch.int32).to(device),
        s,
        LAYERS=count,
        COLUMNS=COLUMNS,
        RANK=triton.next_power_of_2(rank),
        WEIGHT=_TYPES[dtype],
        FACTOR=_TYPES[common],
        DOT=dot_type(common),
        ALIGNED=aligned,
        LARGEST=torch.finfo(dtype).max if dtype.itemsize == 1 else 0.0,
        BLOCK_O=BLOCK_O,
        BLOCK_D=BLOCK_D,
        BLOCK_R=min(64, max(16, triton.next_power_of_2(rank))),
    )


def _aligned(tensor: Tensor) -> bool:
    """True if rows begin at multiples of 16 bytes, are as long, and have no gaps, so that loads may be wide."""
    step = tensor.stride(0) * tensor.element_size()
    return tensor.data_ptr() % 16 == 0 and step % 16 == 0 and tensor.shape[1] % 16 == 0 and tensor.stride(1) == 1


@triton.jit
def _add(
    table, first, s, LAYERS: tl.constexpr, COLUMNS: tl.constexpr, RANK: tl.constexpr, WEIGHT: tl.constexpr,
    FACTOR: tl.constexpr, DOT: tl.constexpr, ALIGNED: tl.constexpr, LARGEST: tl.constexpr, BLOCK_O: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    begins = tl.load(first + tl.arange(0, LAYERS))
    layer = tl.sum((begins <= program).to(tl.int32), 0) - 1
    tile = program - tl.load(first + layer)
    at = table + layer * COLUMNS
    weight = tl.load(at).to(tl.pointer_type(WEIGHT))
    source = tl.load(at + 1).to(tl.pointer_type(WEIGHT))
    down = tl.load(at + 2).to(tl.pointer_type(FACTOR))
    up = tl.load(at + 3).to(tl.pointer_type(FACTOR))
    out, width, rank = tl.load(at + 4), tl.load(at + 5), tl.load(at + 6)
    weight_o, weight_d = tl.load(at + 7), tl.load(at + 8)
    source_o, source_d = tl.load(at + 9), tl.load(at + 10)
    down_r, down_d = tl.load(at + 11), tl.load(at + 12)
    up_o, up_r = tl.load(at + 13), tl.load(at + 14)
    if ALIGNED:
        weight, source, down = tl.multiple_of(weight, 16), tl.multiple_of(source, 16), tl.multiple_of(down, 16)
        weight_o = tl.multiple_of(weight_o, 128 // WEIGHT.primitive_bitwidth)
        source_o = tl.multiple_of(source_o, 128 // WEIGHT.primitive_bitwidth)
        down_r = tl.multiple_of(down_r, 128 // FACTOR.primitive_bitwidth)
        width = tl.multiple_of(width, 16)
        weight_d, source_d, down_d = 1, 1, 1
    across = (width + BLOCK_D - 1) // BLOCK_D
    o = tile // across * BLOCK_O + tl.arange(0, BLOCK_O)
    d = tile % across * BLOCK_D + tl.arange(0, BLOCK_D)
    total = tl.zeros((BLOCK_O, BLOCK_D), tl.float32)
    for start in range(0, RANK, BLOCK_R):
        r = start + tl.arange(0, BLOCK_R)
        b_in, a_in = (o[:, None] < out) & (r[None, :] < rank), (r[:, None] < rank) & (d[None, :] < width)
        b = tl.load(up + o[:, None] * up_o + r[None, :] * up_r, mask=b_in, other=0.0)
        a = tl.load(down + r[:, None] * down_r + d[None, :] * down_d, mask=a_in, other=0.0)
        total = tl.dot(b.to(DOT), a.to(DOT), total, input_precision="ieee")
    inside = (o[:, None] < out) & (d[None, :] < width)
    old = tl.load(source + o[:, None] * source_o + d[None, :] * source_d, mask=inside, other=0.0).to(tl.float32)
    new = old + s * total
    if LARGEST > 0:
        # Written so that NaN stays NaN.
        new = tl.where(new > LARGEST, LARGEST, tl.where(new < -LARGEST, -LARGEST, new))
    tl.store(weight + o[:, None] * weight_o + d[None, :] * weight_d, new.to(WEIGHT), mask=inside)
