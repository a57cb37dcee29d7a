"""CLIP score: how well a picture fits its prompt, 100 cos(picture, prompt), by an image encoder.

Not clipped, so that averages are unbiased: torchmetrics' `clip_score` is the mean of the same values, set to 0
where the mean is below 0. Some papers divide by 100, some multiply by 2.5 and clip each picture at 0. The prompt is
the row's own, also for pictures that were drawn from what an attack found.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..measure.embedded import NO_SIGHT, directions_of_pictures, directions_of_texts, sight_of
from ..probe import View
from ..spec import MethodSpec, Value


class ClipScore:
    """The fit of pictures and prompts."""

    spec = MethodSpec(
        name="clip_score",
        title="CLIP score",
        paper="Hessel et al., CLIPScore: A Reference-free Evaluation Metric for Image Captioning, EMNLP 2021",
        summary="Says how well a picture fits its prompt, -100 to 100; around 30 is usual for CLIP ViT-B/32.",
        families=("demo",),
        parameters=(),
    )
    recognises = False

    def lacks(self, view: View) -> str:
        return "" if view.sight is not None else NO_SIGHT

    def look(self, view: View, settings: Mapping[str, Value]) -> dict[str, Tensor]:
        """`clip_score`, `[n]` float32.

        Raises:
            NumericsError: embeddings are not finite.
            SettingError: the view has no image encoder.
        """
        sight = sight_of(view)
        pictures = directions_of_pictures(sight, view.pictures)
        prompts = directions_of_texts(sight, [row.text for row in view.rows])
        return {"clip_score": 100 * (pictures * prompts).sum(1)}


PROBE = ClipScore()
