"""Weighted Gram matrices, gathered from token rows batch by batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .constraints import AtLeast, Devices, Facts
from .dispatch import Backend, Operation
from .errors import KernelError


def _blocks() -> Callable[..., Any]:
    from .reference.gram import accumulate_blocks_ as run

    return run


def _eager() -> Callable[..., Any]:
    from .reference.gram import accumulate_ as run

    return run


OPERATION = Operation(
    "gram",
    "weighted Gram matrices of token rows",
    "blocks above the diagonal take two thirds of the full product's time on a CPU, but not for few or narrow rows",
    (
        Backend("blocks", _blocks, pays=(Devices(("cpu",)), AtLeast("rows", 128), AtLeast("width", 512))),
        Backend("eager", _eager),
    ),
)


def gram_of(rows: Tensor, weights: Tensor | None = None) -> Tensor:
    """`X^T diag(w) X` of rows `[n, d]` with weights `[n]`, ones when None: `[d, d]` float64."""
    found = torch.zeros(rows.shape[-1], rows.shape[-1], dtype=torch.float64, device=rows.device)
    accumulate_(found, rows, weights)
    return found


@torch.no_grad()
def accumulate_(gram: Tensor, rows: Tensor, weights: Tensor | None = None) -> None:
    """`G <- G + X^T diag(w) X`.

    Args:
        gram: G, `[d, d]` float32 or float64, symmetric; changed. Its dtype is the one that is computed in.
        rows: X, `[n, d]`, any floating dtype; n may be 0.
        weights: w, `[n]`; ones when None.

    Raises:
        KernelError: shapes disagree, or G is of another dtype.
    """
    fits = gram.ndim == rows.ndim == 2 and gram.shape == (rows.shape[1], rows.shape[1])
    fits = fits and (weights is None or tuple(weights.shape) == (rows.shape[0],))
    if not fits or gram.dtype not in (torch.float32, torch.float64):
        raise KernelError(
            f"A Gram matrix of shape {tuple(gram.shape)} and {gram.dtype} cannot take rows of shape "
            f"{tuple(rows.shape)} with weights of shape {None if weights is None else tuple(weights.shape)}.",
            "They are [d, d] float32 or float64, [n, d] and [n].",
        )
    if rows.shape[0]:
        facts = Facts(rows.device, frozenset({rows.dtype}), {"rows": rows.shape[0], "width": rows.shape[1]})
        OPERATION.choose(facts)(gram, rows, weights)
