"""Areas of a picture that conditions are for.

The host copies conditions from one prompt to another, so that both are looked at in the same areas. A copy keeps all
that is the other prompt's, its id too, but for what the model makes of the text, which is this one's. Guards and gates
know prompts by their ids: so a copy gets back the id of the condition whose text it has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from torch import Tensor
from torch.nn import functional

from .sampling import READINGS

_TEXT = "c_crossattn"
_SAID = ("uuid", "cross_attn", "pooled_output", READINGS)
"""What tells a condition's text."""


@dataclass(frozen=True)
class Areas:
    """The areas of a prompt's conditions.

    Attributes:
        whole: height and width of the latents.
        listed: ids of conditions, each with height, width, top and left edge of its area in latents.
    """

    whole: tuple[int, int] = (0, 0)
    listed: Sequence[tuple[UUID, tuple[int, ...]]] = ()

    def part(self, mask: Tensor, uuid: UUID, size: tuple[int, int]) -> Tensor:
        """What a mask `[h, w]` of the picture is in the latents, of this size, that a condition is looked at with."""
        area = next((own for one, own in self.listed if one == uuid and own[:2] == size), None)
        if area is None or size == self.whole:
            return mask
        height, width, top, left = area
        sized = functional.interpolate(mask[None, None].float(), size=self.whole, mode="area")[0, 0]
        return sized[top : top + height, left : left + width]


def told_apart(conds: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The conditions of one prompt, as the host has prepared them: copies with the id and the text that are theirs."""
    first: dict[int, Mapping[str, Any]] = {}
    for cond in conds:
        # Copies stand behind what they were made of.
        first.setdefault(_text(cond), cond)
    return [_copied(cond, first[_text(cond)]) for cond in conds]


def _text(cond: Mapping[str, Any]) -> int:
    return id(cond.get("model_conds", {}).get(_TEXT, cond))


def _copied(cond: Mapping[str, Any], source: Mapping[str, Any]) -> Mapping[str, Any]:
    if cond.get("uuid") == source.get("uuid"):
        return cond
    rest = {name: value for name, value in cond.items() if name not in _SAID}
    return {**rest, **{name: source[name] for name in _SAID if name in source}}
