"""Many gated low-rank adapters beside one projection, as two matrix products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from .constraints import FLOATS, TRITON, Dtypes, Facts
from .dispatch import Backend, Operation
from .errors import KernelError


def _eager() -> Callable[..., Any]:
    from .reference.stacked import stacked as run

    return run


def _triton() -> Callable[..., Any]:
    from .triton.stacked import stacked as run

    return run


OPERATION = Operation(
    "stacked",
    "gated low-rank adapters beside a projection",
    "eager first: the Triton kernel is not yet measured on a GPU",
    (Backend("eager", _eager), Backend("triton", _triton, (*TRITON, Dtypes(FLOATS)))),
)


def stacked(x: Tensor, base: Tensor, down: Tensor, up: Tensor, gates: Tensor | None = None) -> Tensor:
    """`y = base + sum_i g_i (x A_i^T) B_i^T` for adapters stacked along one rank axis of R = sum of ranks.

    Args:
        x: `[rows, ..., d]`, what enters the projection; the dtype that is computed in.
        base: `[rows, ..., o]`, what the projection gave; not changed.
        down: `[R, d]`, all A_i; R may be 0. On a GPU a multiple of 16, filled up with zeros, loads fastest.
        up: `[o, R]`, all B_i.
        gates: `[rows, R]` or `[1, R]`, each g_i repeated over its adapter's ranks; ones when None.

    Returns:
        A tensor of base's shape and dtype; equal to base where all gates of a row are zero.

    Raises:
        KernelError: shapes disagree.
    """
    _check(x, base, down, up, gates)
    if not down.shape[0] or not base.numel():
        return base.clone()
    flat = x if x.ndim == 3 else x.reshape(x.shape[0], -1, x.shape[-1])
    into = base if base.ndim == 3 else base.reshape(base.shape[0], -1, base.shape[-1])
    facts = Facts(x.device, frozenset({x.dtype, base.dtype}), {"rank": down.shape[0]})
    return OPERATION.choose(facts)(flat, into, down, up, gates).reshape(base.shape)


def _check(x: Tensor, base: Tensor, down: Tensor, up: Tensor, gates: Tensor | None) -> None:
    fits = x.ndim > 1 and x.shape[:-1] == base.shape[:-1] and down.ndim == 2 and up.ndim == 2
    fits = fits and down.shape == (up.shape[1], x.shape[-1]) and up.shape[0] == base.shape[-1]
    if gates is not None:
        fits = fits and gates.ndim == 2 and gates.shape[1] == down.shape[0] and gates.shape[0] in (1, x.shape[0])
    if not fits:
        given = [tuple(tensor.shape) for tensor in (x, base, down, up)]
        raise KernelError(
            f"Stacked adapters cannot have x, base, down and up of shapes {given} and gates of shape "
            f"{None if gates is None else tuple(gates.shape)}.",
            "They are [rows, ..., d], [rows, ..., o], [R, d], [o, R] and [rows, R].",
        )
