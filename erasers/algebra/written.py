"""Edits written into weights, those in factors all at once (kernels/grouped.py)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ...kernels.grouped import add_low_rank_
from ..errors import FamilyError
from ..result import WeightEdit


@torch.no_grad()
def written(weights: Mapping[str, Tensor], edits: Mapping[str, WeightEdit], s: float) -> dict[str, Tensor]:
    """New weights `W + s D` by name, added up in float32 and rounded once to the weight's dtype.

    Args:
        weights: `[o, ...]` by name, on one device; not changed.
        edits: D by the same names.
        s: the strength.

    Raises:
        FamilyError: there is no such weight, or an edit does not fit it.
    """
    found: dict[str, Tensor] = {}
    targets, sources, downs, ups = [], [], [], []
    for name, edit in edits.items():
        if name not in weights:
            raise FamilyError(f"The model has no weight '{name}'.", "Load the model that the eraser was made for.")
        weight = weights[name].detach()
        shape = tuple(weight.shape)
        edit.check_shape(shape)
        if edit.down is None or edit.up is None:
            found[name] = (weight.float() + s * edit.delta(shape)).to(weight.dtype)
            continue
        found[name] = torch.empty(shape, dtype=weight.dtype, device=weight.device)
        targets.append(found[name].flatten(1))
        sources.append(weight.flatten(1))
        downs.append(edit.down.to(weight.device))
        ups.append(edit.up.to(weight.device))
    add_low_rank_(targets, downs, ups, s, sources)
    return found
