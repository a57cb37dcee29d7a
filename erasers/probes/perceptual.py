"""How far a picture has moved in an image encoder's space: 1 - cos(before, after), equal seeds.

The complement of what papers call CLIP-I. A scrambled picture is far away too: read it beside a score of quality.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..measure.embedded import NO_SIGHT, directions_of_pictures, sight_of
from ..probe import View
from ..spec import MethodSpec, Value


class Perceptual:
    """The distance that an image encoder sees."""

    spec = MethodSpec(
        name="perceptual",
        title="Perceptual difference",
        paper="",
        summary="Says how different an image encoder finds the pictures before and after; 0 is the same, 2 opposite.",
        families=("demo",),
        parameters=(),
    )
    recognises = False

    def lacks(self, view: View) -> str:
        return "" if view.sight is not None else NO_SIGHT

    def look(self, view: View, settings: Mapping[str, Value]) -> dict[str, Tensor]:
        """`perceptual`, `[n]` float32 in 0..2; 0 where the pictures are equal.

        Raises:
            NumericsError: embeddings are not finite.
            SettingError: the view has no image encoder.
        """
        sight = sight_of(view)
        before, after = (directions_of_pictures(sight, pictures) for pictures in (view.before, view.pictures))
        # Half the squared distance of unit vectors is 1 - cos, and exactly 0 for equal ones.
        return {"perceptual": (before - after).square().sum(1) / 2}


PROBE = Perceptual()
