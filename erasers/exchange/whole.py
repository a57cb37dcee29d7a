"""Files that hold weights as they are after an erasure: what they change is their difference to the loaded model."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import EraserFileError, FamilyError
from ..result import WeightEdit
from .base import Base, Owner
from .layout import Parts

_SPARSE = 0.25
"""Share of changed numbers below which places and values take less room than the whole difference."""
_HALVES = (torch.float16, torch.bfloat16)


def differences(owners: Mapping[str, Owner], base: Base, *sources: Mapping[str, Tensor]) -> Parts:
    """What files with whole weights change.

    Args:
        owners: the weight that each tensor stands for; other tensors are left out.
        sources: where tensors are by name; the first that has one counts.

    Raises:
        FamilyError: the model has no such weight, or one of another shape.
        EraserFileError: all weights are the model's own.
    """
    edits = {}
    for key, owner in owners.items():
        shape, value = base.shape(owner), next(source[key] for source in sources if key in source)
        if tuple(value.shape) != shape:
            raise FamilyError(
                f"'{key}' has shape {tuple(value.shape)}, the model's weight {shape}.",
                "Connect the model that the file was made for.",
            )
        own = base.read(owner)
        if not _same(value, own):
            edits[owner] = _edit(value.float() - own)
    if not edits:
        raise EraserFileError(
            "all its weights are those of the loaded model", "Connect the model it was made from, not the edited one."
        )
    return Parts(edits)


def _same(value: Tensor, own: Tensor) -> bool:
    """Whether a weight is the model's own `[...]` float32, in the narrower of the two precisions they are kept in."""
    wide = value.float()
    if torch.equal(own.to(value.dtype).float(), wide):
        return True
    return any(torch.equal(own.to(half).float(), own) and torch.equal(wide.to(half).float(), own) for half in _HALVES)


def _edit(change: Tensor) -> WeightEdit:
    flat = change.flatten()
    places = flat.nonzero().flatten()
    if len(places) < _SPARSE * len(flat):
        return WeightEdit(indices=places, values=flat[places])
    return WeightEdit(dense=change.reshape(len(change), -1))
