"""The demo world's judge: reads objects, colours, styles, places, characters and the emblem off its pictures."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..demo.grammar import known_word
from ..demo.world import judge
from ..errors import SettingError
from ..probe import CONCEPT, SUBJECT, View
from ..spec import MethodSpec, Value

_SIDE = 128


class DemoJudge:
    """The probe of the demo model."""

    spec = MethodSpec(
        name="demo_judge",
        title="Demo judge",
        paper="",
        summary="The demo world's own classifier; it reads nothing else.",
        families=("demo",),
        parameters=(),
    )
    recognises = True

    def lacks(self, view: View) -> str:
        return ""

    def look(self, view: View, settings: Mapping[str, Value]) -> dict[str, Tensor]:
        """Whether concept and subject are seen.

        Raises:
            SettingError: the pictures are not of the demo model's size.
            ConceptError: the judge knows nothing of a name.
        """
        if tuple(view.pictures.shape[2:]) != (_SIDE, _SIDE):
            size = "x".join(str(side) for side in reversed(view.pictures.shape[2:]))
            raise SettingError(
                f"The demo world's judge reads pictures of {_SIDE}x{_SIDE}, not {size}.",
                f"Set width and height to {_SIDE}, or choose another probe.",
            )
        seen = judge().seen(view.pictures)
        columns = {CONCEPT: [row.concept for row in view.rows], SUBJECT: [row.subject for row in view.rows]}
        return {
            name: torch.tensor([bool(a) and known_word(a) in s for a, s in zip(asked, seen, strict=True)])
            for name, asked in columns.items()
        }


PROBE = DemoJudge()
