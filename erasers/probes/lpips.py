"""LPIPS with AlexNet under equal seeds, through torchmetrics.

Its small linear layers ship with torchmetrics; AlexNet's weights are torchvision's file, which the user puts where
torch.hub keeps files. Nothing is downloaded. LPIPS of erased prompts (papers want it high) is high for a scrambled
picture too: read it beside a score of quality.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import SettingError
from ..measure.library import missing
from ..measure.picture_pairs import picture_pairs
from ..probe import View
from ..spec import MethodSpec, Value

_LEAST = 31
"""AlexNet's features of smaller pictures are empty."""


class Lpips:
    """The learned perceptual difference."""

    spec = MethodSpec(
        name="lpips",
        title="LPIPS (AlexNet)",
        paper="Zhang et al., The Unreasonable Effectiveness of Deep Features as a Perceptual Metric, CVPR 2018 "
        "(arXiv 1801.03924)",
        summary="Says how different a network trained on human judgements finds the pictures before and after.",
        families=(),
        parameters=(),
    )
    recognises = False

    def lacks(self, view: View) -> str:
        absent = missing("torchmetrics", "torchvision")
        if absent:
            return absent
        path, url = _weights()
        if path.is_file():
            return ""
        return f"Put torchvision's AlexNet weights, {url}, into torch.hub's folder 'checkpoints' (torch.hub.get_dir())."

    def look(self, view: View, settings: Mapping[str, Value]) -> dict[str, Tensor]:
        """`lpips`, `[n]` float32; 0 where pictures are equal.

        Raises:
            SettingError: the weights are not there or broken, sizes differ, or pictures are too small.
            NumericsError: pixels are not finite.
        """
        absent = self.lacks(view)
        if absent:
            raise SettingError("LPIPS cannot be measured.", absent)
        before, after = picture_pairs(view, _LEAST)
        path, _ = _weights()
        metric = _metric(path, path.stat().st_mtime_ns)
        with torch.no_grad():
            pairs = zip(before.split(1), after.split(1), strict=True)
            return {"lpips": torch.stack([metric(one, other).reshape(()) for one, other in pairs])}


def _weights() -> tuple[Path, str]:
    """Where torchvision looks for AlexNet's weights before it would download them, and where they come from."""
    from torchvision.models import AlexNet_Weights

    url = AlexNet_Weights.DEFAULT.url
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2], url


@lru_cache(maxsize=1)
def _metric(path: Path, changed: int) -> Any:
    """The metric, built once per file; `changed` is the file's time stamp."""
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    try:
        # torchvision unpickles whatever the file holds; this refuses a file that holds anything but tensors.
        torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        return LearnedPerceptualImagePatchSimilarity("alex", reduction="mean", normalize=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise SettingError(
            f"'{path}' does not hold AlexNet's weights: {str(error)[:300].rstrip('.')}.",
            "Replace it by torchvision's file.",
        ) from error


PROBE = Lpips()
