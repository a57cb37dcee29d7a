"""Takes from the erasing gradient what would undo the keeping one (DoCo's concept-preserving gradient)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..algebra.parameters import AS_RELEASED, CORRECTED


@dataclass(frozen=True)
class Surgery:
    """For each tensor whose gradients conflict, g . k < 0: g <- g - lam (g . k / k . k) k; a `Plan.surgery`.

    Only the erasing gradient is descended.

    Attributes:
        lam: share of the component along the keeping gradient that goes.
        variant: CORRECTED, or AS_RELEASED for g <- g - lam cos(g, k) k / |k|, which leaves the size of g out: where
            |g| < 1 it takes more than there is, and the conflict comes back with the other sign.
    """

    lam: float = 1.0
    variant: str = CORRECTED

    def __call__(self, erasing: list[Tensor | None], keeping: list[Tensor | None]) -> list[Tensor | None]:
        return [
            own if own is None or other is None else self._parted(own, other)
            for own, other in zip(erasing, keeping, strict=True)
        ]

    def _parted(self, own: Tensor, other: Tensor) -> Tensor:
        size = _length(other)
        if not bool(size > 0):
            return own
        along = other / size
        conflict = (own * along).sum()
        if self.variant == AS_RELEASED:
            conflict = conflict / _length(own).clamp_min(torch.finfo(own.dtype).tiny)
        return own - self.lam * conflict * along if bool(conflict < 0) else own


def _length(gradient: Tensor) -> Tensor:
    """The norm, also of gradients so small that their squares are lost to rounding."""
    top = gradient.abs().amax().clamp_min(torch.finfo(gradient.dtype).tiny)
    return top * (gradient / top).norm()
