"""Prompts that guards put in the place of the picture's: with everything that the host makes of a prompt.

Features alone do not do where encoders give prompts different lengths, or where pooled features enter beside them. So
the replacement is prepared by the host as a condition of its own, and stands in the step's conditions while it acts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import comfy.sampler_helpers
import torch
from torch import Tensor

from ...erasers.errors import GuardError
from .sampling import READINGS

_KEPT = ("uuid", "model_conds")
_ITS_PLACE = (
    "area", "mask", "mask_strength", "set_area_to_bounds", "strength", "default",
    "start_percent", "end_percent", "timestep_start", "timestep_end",
    "attention_mask", READINGS,
)  # fmt: skip
"""What belongs to one prompt alone: where and when it is drawn, and its own words."""


@dataclass(frozen=True, eq=False)
class Replaced:
    """A reading that is another prompt: its CONDITIONING."""

    conditioning: Any


def own_conditions(said: Sequence[Mapping[str, Any]], conditioning: Any) -> list[dict[str, Any]]:
    """Conditions of a guard's own prompt, drawn all over the picture and in the company of the picture's first prompt.

    What other nodes gave that prompt beside its text, such as control nets, hooks or an inpainting model's picture,
    goes with this one too: else predictions would differ in it, and the guard would act on the difference.
    """
    shared = {name: value for name, value in said[0].items() if name not in _ITS_PLACE} if said else {}
    return [{**shared, **own} for own in comfy.sampler_helpers.convert_cond(conditioning)]


def replacing_condition(cond: Mapping[str, Any], pairs: Sequence[tuple[bool, Any]]) -> dict[str, Any] | None:
    """A condition with other prompts in the rows that a guard acts on; None where it replaces none.

    Args:
        cond: the picture's condition, as the host holds it before it prepares it.
        pairs: for each row, whether the guard acts on it, and what it read.

    Raises:
        GuardError: rows of one batch would differ in more than their features.
    """
    if not any(acts and isinstance(own, Replaced) for acts, own in pairs):
        return None
    rows = [_own(own) if acts and isinstance(own, Replaced) else _row(cond, i) for i, (acts, own) in enumerate(pairs)]
    first = rows[0]
    for other in rows[1:]:
        if any(name not in other or other[name].shape != value.shape for name, value in first.items()):
            raise GuardError(
                "A prompt of the batch is rewritten to another length than the others have.", "Set the batch to 1."
            )
    joined = {name: torch.cat([row[name] for row in rows]) for name in first}
    rest = {name: value for name, value in cond.items() if name not in first and name != "attention_mask"}
    return {**rest, **joined, "model_conds": {}, "uuid": uuid4()}


def _own(reading: Replaced) -> dict[str, Tensor]:
    """What belongs to the prompt of a rewritten condition."""
    found = comfy.sampler_helpers.convert_cond(reading.conditioning)[0]
    return {name: value for name, value in found.items() if isinstance(value, Tensor) and name not in _KEPT}


def _row(cond: Mapping[str, Any], row: int) -> dict[str, Tensor]:
    names = ("cross_attn", "pooled_output", "attention_mask")
    found = {name: cond[name] for name in names if isinstance(cond.get(name), Tensor)}
    return {name: value[row % len(value)][None] for name, value in found.items()}
