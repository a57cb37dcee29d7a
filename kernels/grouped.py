"""Low-rank changes of all projections of a model in one go, and their undoing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .constraints import FLOATS, FP8, TRITON, Capability, Dtypes, Facts
from .dispatch import Backend, Operation
from .errors import KernelError


def _eager() -> Callable[..., Any]:
    from .reference.grouped import add_low_rank_ as run

    return run


def _triton() -> Callable[..., Any]:
    from .triton.grouped import add_low_rank_ as run

    return run


OPERATION = Operation(
    "grouped",
    "low-rank changes of many weights at once",
    "eager first: the Triton kernel is not yet measured on a GPU",
    (
        Backend("eager", _eager),
        Backend("triton", _triton, (*TRITON, Dtypes(FLOATS | FP8), Capability((8, 9), FP8))),
    ),
)


@torch.no_grad()
def add_low_rank_(
    weights: Sequence[Tensor],
    downs: Sequence[Tensor],
    ups: Sequence[Tensor],
    strength: float = 1.0,
    kept: Sequence[Tensor] | None = None,
) -> None:
    """Change every weight in place: `W_l <- S_l + s B_l A_l`, with S_l the kept copy, or W_l itself.

    From a kept copy any strength follows any other without a trace of it, however narrow the weights' dtype.

    Args:
        weights: `[o_l, d_l]` each, all on one device; changed. float32, float16, bfloat16 or an 8-bit float, read
            and rounded once, with sums in float32 (float64 for float64). 8-bit formats saturate.
        downs: A_l, `[r_l, d_l]`; one tensor may stand for several.
        ups: B_l, `[o_l, r_l]`.
        strength: s; 0 leaves or gives back the weights bit for bit.
        kept: what `keep` returned.

    Raises:
        KernelError: lengths or shapes disagree.
    """
    sources = weights if kept is None else kept
    _check(weights, sources, downs, ups)
    if strength == 0:
        if kept is not None:
            restore_(weights, kept)
        return
    used = [i for i, down in enumerate(downs) if len(down) and weights[i].numel()]
    if kept is not None and len(used) < len(weights):
        restore_(weights, kept)
    parts = [[tensors[i] for i in used] for tensors in (weights, sources, downs, ups)]
    if used:
        facts = Facts(weights[0].device, frozenset(t.dtype for tensors in parts for t in tensors))
        OPERATION.choose(facts)(*parts, strength)


def keep(weights: Sequence[Tensor]) -> list[Tensor]:
    """Copies to restore from."""
    return [weight.detach().clone() for weight in weights]


@torch.no_grad()
def restore_(weights: Sequence[Tensor], kept: Sequence[Tensor]) -> None:
    """Put kept copies back, bit for bit. The vendor library's copies are at the memory's speed already."""
    for weight, copy in zip(weights, kept, strict=True):
        weight.copy_(copy)


def _check(
    weights: Sequence[Tensor], sources: Sequence[Tensor], downs: Sequence[Tensor], ups: Sequence[Tensor]
) -> None:
    if not len(weights) == len(sources) == len(downs) == len(ups):
        raise KernelError(
            f"There are {len(weights)} weights, {len(sources)} sources, {len(downs)} downs and {len(ups)} ups.",
            "Give one of each per weight.",
        )
    for i, (weight, source, down, up) in enumerate(zip(weights, sources, downs, ups, strict=True)):
        fits = weight.ndim == down.ndim == up.ndim == 2 and source.shape == weight.shape
        fits = fits and up.shape == (weight.shape[0], down.shape[0]) and down.shape[1] == weight.shape[1]
        if not fits or source.dtype != weight.dtype:
            raise KernelError(
                f"Weight {i} of shape {tuple(weight.shape)} and {weight.dtype} cannot take a source of shape "
                f"{tuple(source.shape)} and {source.dtype}, down {tuple(down.shape)} and up {tuple(up.shape)}.",
                "They are [o, d], [o, d] of the same dtype, [r, d] and [o, r].",
            )
