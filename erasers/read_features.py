"""Text parts whose reader made features, `[tokens, d]`: they are put in place of the prompt's, or added to them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .errors import GuardError


class Swapped:
    """The features that were read stand in place of the prompt's; None leaves them."""

    def holds(self, reading: Any, percent: float) -> bool:
        return reading is not None

    def edit(self, states: Tensor, reading: Any) -> Tensor:
        return _as_long(reading, states)


class Added:
    """The features that were read are added to the prompt's; None leaves them."""

    def holds(self, reading: Any, percent: float) -> bool:
        return reading is not None

    def edit(self, states: Tensor, reading: Any) -> Tensor:
        return states + _as_long(reading, states)


def copies(states: Tensor, length: int) -> int:
    """How many times the host repeated a prompt of `length` tokens, for a batch with longer ones.

    Raises:
        GuardError: the features are not of that prompt alone.
    """
    if len(states) % length == 0:
        every = states.unflatten(0, (-1, length))
        if bool((every == every[0]).all()):
            return len(every)
    raise GuardError(
        f"The prompt that was read has {length} tokens, and features of {len(states)} came, which are not it repeated.",
        "Encode the prompt with the guard's own CLIP output, and do not join its features with others.",
    )


def _as_long(reading: Tensor, states: Tensor) -> Tensor:
    return reading.to(states).repeat(copies(states, len(reading)), 1)
