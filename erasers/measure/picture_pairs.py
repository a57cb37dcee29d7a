"""Pictures of one prompt and seed, before and after, pixel beside pixel."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import NumericsError, SettingError
from ..probe import View


def picture_pairs(view: View, least: int = 1) -> tuple[Tensor, Tensor]:
    """The view's pictures before and after, `[n, 3, h, w]` float32 in 0..1 on the CPU.

    Args:
        least: shortest side in pixels that can be compared.

    Raises:
        SettingError: the two differ in size, or are smaller than `least`.
        NumericsError: pixels are not finite.
    """
    before, after = view.before, view.pictures
    if before.shape != after.shape:
        raise SettingError(
            f"The pictures before and after have shapes {tuple(before.shape)} and {tuple(after.shape)}.",
            "Draw both with the same size.",
        )
    if min(before.shape[2:]) < least:
        raise SettingError(
            f"The pictures are {before.shape[3]}x{before.shape[2]} pixels.", f"Draw sides of {least} or more."
        )
    if not bool(torch.isfinite(before).all() and torch.isfinite(after).all()):
        raise NumericsError("Pictures hold pixels that are not finite.", "Run the VAE in float32.")
    return before.float().cpu().clamp(0, 1), after.float().cpu().clamp(0, 1)
