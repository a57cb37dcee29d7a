"""Cross-attention with weighted tokens and a read-out of its map, over a short text axis."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .constraints import HALVES, TRITON, AtMost, Dtypes, Facts, OneOf
from .dispatch import Backend, Operation
from .errors import KernelError


def _vendor() -> Callable[..., Any]:
    from .reference.reweighted_vendor import reweighted as run

    return run


def _eager() -> Callable[..., Any]:
    from .reference.reweighted import reweighted as run

    return run


def _triton() -> Callable[..., Any]:
    from .triton.reweighted import reweighted as run

    return run


OPERATION = Operation(
    "reweighted",
    "cross-attention with weighted tokens and a read-out of its map",
    "torch's own attention where it can say what is asked; the Triton kernel is not yet measured on a GPU",
    (
        Backend("vendor", _vendor, (OneOf("read", ("none", "sum")),)),
        Backend("eager", _eager),
        Backend("triton", _triton, (*TRITON, Dtypes(HALVES), AtMost("groups", 8), AtMost("head width", 128))),
    ),
)


@dataclass(frozen=True)
class Read:
    """What is read off an attention map.

    Attributes:
        chosen: `[b, m, t]` bool, the tokens of each of m groups.
        how: a group's tokens are summed, or their largest probability is taken.
    """

    chosen: Tensor
    how: Literal["sum", "max"] = "sum"


def reweighted(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, scale: Tensor | None = None, read: Read | None = None
) -> tuple[Tensor, Tensor | None]:
    """`P = softmax(q k^T / sqrt(e) + bias)`, `out = P (scale * v)`, and a read-out of P.

    Args:
        q: `[b, h, n, e]` queries.
        k: `[b, h, t, e]`; v: `[b, h, t, f]`; the dtype of q.
        bias: `[b, t]`, added to every query's logits: the log of a weight that is renormalised. -inf shuts a
            token out; a row needs one that is finite. None adds nothing.
        scale: `[b, t]`, weights of the values, applied after softmax and not renormalised.
        read: what to read; nothing when None. A group without tokens reads 0.

    Returns:
        `out` `[b, h, n, f]` in q's dtype, and the read-out `[b, h, n, m]` float32 (float64 for float64), or None.

    Raises:
        KernelError: shapes disagree.
    """
    _check(q, k, v, (bias, scale), read)
    groups = 0 if read is None else read.chosen.shape[1]
    facts = Facts(
        q.device,
        frozenset({q.dtype, k.dtype, v.dtype}),
        {"groups": groups, "head width": max(q.shape[-1], v.shape[-1])},
        {"read": "none" if read is None else read.how},
    )
    if read is None:
        return OPERATION.choose(facts)(q, k, v, bias, scale, None, "none")
    return OPERATION.choose(facts)(q, k, v, bias, scale, read.chosen, read.how)


def _check(q: Tensor, k: Tensor, v: Tensor, rows: tuple[Tensor | None, Tensor | None], read: Read | None) -> None:
    fits = q.ndim == k.ndim == v.ndim == 4 and q.shape[:2] == k.shape[:2] == v.shape[:2]
    fits = fits and q.shape[3] == k.shape[3] and k.shape[2] == v.shape[2] and k.shape[2] > 0
    of_tokens = (k.shape[0], k.shape[-2])
    fits = fits and all(row is None or tuple(row.shape) == of_tokens for row in rows)
    if read is not None:
        shape = tuple(read.chosen.shape)
        fits = fits and len(shape) == 3 and (shape[0], shape[2]) == of_tokens and read.chosen.dtype == torch.bool
    if not fits:
        given = [None if t is None else tuple(t.shape) for t in (q, k, v, *rows, read and read.chosen)]
        raise KernelError(
            f"Attention cannot have q, k, v, bias, scale and chosen tokens of shapes {given}.",
            "They are [b, h, n, e], [b, h, t, e], [b, h, t, f], [b, t], [b, t] and [b, m, t] bool.",
        )
