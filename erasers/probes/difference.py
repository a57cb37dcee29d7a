"""Picture difference under equal seeds: the root mean square over pixels and channels, and SSIM.

SSIM is torchmetrics' with data range 1: a Gaussian window of sigma 1.5, the mean over the whole picture whose
borders are mirrored. Implementations that cut the borders off differ by a little.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..measure.library import missing, need
from ..measure.picture_pairs import picture_pairs
from ..probe import View
from ..spec import MethodSpec, Value

_LEAST = 6
"""SSIM's window reaches 5 pixels to each side and is mirrored at the border."""


class Difference:
    """The difference of pixels."""

    spec = MethodSpec(
        name="difference",
        title="Pixel difference and SSIM",
        paper="Wang et al., Image Quality Assessment: From Error Visibility to Structural Similarity, "
        "IEEE Transactions on Image Processing 2004",
        summary="Says how far pixels moved (0 is not at all, 1 from black to white) and how alike structures are.",
        families=("demo",),
        parameters=(),
    )
    recognises = False

    def lacks(self, view: View) -> str:
        return missing("torchmetrics")

    def look(self, view: View, settings: Mapping[str, Value]) -> dict[str, Tensor]:
        """`pixel_rms` in 0..1, 0 where pictures are equal, and `ssim` in -1..1, 1 where they are; `[n]` float32.

        Raises:
            SettingError: sizes differ, pictures are too small, or torchmetrics is not installed.
            NumericsError: pixels are not finite.
        """
        need("SSIM", "torchmetrics")
        from torchmetrics.functional.image import structural_similarity_index_measure as ssim

        before, after = picture_pairs(view, _LEAST)
        alike: Any = ssim(after, before, data_range=1.0, reduction="none")
        return {"pixel_rms": (after - before).square().mean((1, 2, 3)).sqrt(), "ssim": alike}


PROBE = Difference()
