"""What can be told inside a layer: which rows of its batch a guard acts on, and the size of its features."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, Protocol
from uuid import UUID

import torch
from torch import Tensor

from ...erasers.errors import GuardError
from ...erasers.window import Window
from .areas import Areas

OVERRIDE = "optimized_attention_override"
"""The host's slot around attention."""
_FACTORS = (1, 2, 4, 8, 16, 32, 64)


class Sampling(Protocol):
    """What a sampling that is under way tells of itself.

    Attributes:
        acting: by guard, which rows of each of the prompt's conditions it acts on, by the condition's id.
        areas: those of the prompt's conditions in this step.
        made: what layers made once for all of them and for every step, by what it is for.
    """

    acting: Mapping[Any, Mapping[UUID, Tensor]]
    areas: Areas
    made: dict[Any, Any]

    def moment(self, options: Mapping[str, Any]) -> float:
        """How far it has come, in a pass of the model with these options."""
        ...

    def rows(self, guard: Any, count: int) -> Tensor:
        """Which of `count` pictures a guard acts on, `[count]` bool."""
        ...

    def read(self, guard: Any, uuid: UUID) -> Sequence[Any]:
        """What a guard made of a condition's tokens, row by row; None for rows that it does not act on."""
        ...

    def weights(self, guard: Any, uuid: UUID) -> Tensor | None:
        """The weights of a condition's tokens, `[rows, tokens]`; None where none of the guard's words is in it."""
        ...


def behind(func: Callable[..., Tensor], before: Callable[..., Tensor] | None) -> Callable[..., Tensor]:
    """An attention function behind what another node put into the host's slot; None for nothing there."""
    return func if before is None else partial(before, func)


def check_own_attention(options: Mapping[str, Any], title: str, kind: Literal["self", "cross"] = "cross") -> None:
    """GuardError where another node puts its own computation in the place of an attention in which a guard acts."""
    if options.get("patches_replace", {}).get("attn1" if kind == "self" else "attn2"):
        raise GuardError(f"{title} acts in {kind}-attention, which another node replaces.", "Take one of the two out.")


def mask_of_row(mask: Tensor | None, row: int, rows: int) -> Tensor | None:
    """The part of a mask for one row of a batch; the host's masks have two to four axes."""
    return mask[row % len(mask)] if mask is not None and mask.ndim > 2 and len(mask) in (1, rows) else mask


def acting_rows(run: Sampling, guard: Any, window: Window, options: Mapping[str, Any], count: int) -> Tensor | None:
    """Rows of the prompt that a guard acts on now, `[count]` bool; None where there are none.

    Args:
        options: the host's options of a layer.
        count: rows of the batch.
    """
    if not window.holds(run.moment(options)):
        return None
    each = count // len(options["uuids"])
    found = []
    for uuid in options["uuids"]:
        rows = run.acting[guard].get(uuid, torch.zeros(1, dtype=torch.bool))
        found.append(rows.repeat(-(-each // len(rows)))[:each])
    rows = torch.cat(found)
    return rows if bool(rows.any()) else None


def feature_size(options: Mapping[str, Any], places: int) -> tuple[int, int]:
    """Height and width of a layer's features, in places.

    Raises:
        GuardError: the places are not those of the latents, made smaller.
    """
    shape = options.get("activations_shape")
    if shape is not None and shape[-2] * shape[-1] == places:
        return shape[-2], shape[-1]
    height, width = options["original_shape"][-2:]
    for factor in _FACTORS:
        size = -(-height // factor), -(-width // factor)
        if size[0] * size[1] == places:
            return size
    raise GuardError(f"Attention over {places} places does not fit latents of {height} x {width}.", "Change the size.")
