"""A labelled before/after grid."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

_MARGIN, _LINE, _LABEL_WIDTH, _FONT_SIZE = 8, 18, 190, 14
_INK, _PAPER = (30, 30, 30), (255, 255, 255)


def comparison_grid(
    labels: Sequence[str], before: Tensor, after: Tensor, heads: tuple[str, str] = ("before", "after")
) -> Tensor:
    """Set pictures side by side: a row per label, its pictures before and after.

    Args:
        labels: n prompts.
        before, after: `[n * count, h, w, 3]` in 0..1, label by label.
        heads: what stands above the two.

    Returns:
        `[1, H, W, 3]` float32 in 0..1.
    """
    rows, (height, width) = len(labels), before.shape[1:3]
    count = len(before) // rows
    step_x, step_y, gap = width + _MARGIN, max(height, 5 * _LINE) + _MARGIN, 2 * _MARGIN
    halves = [_LABEL_WIDTH, _LABEL_WIDTH + count * step_x + gap]
    sheet = Image.new("RGB", (halves[1] + count * step_x + _MARGIN, rows * step_y + 2 * _LINE), _PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT_SIZE)
    for left, title in zip(halves, heads, strict=True):
        pen.text((left, _MARGIN), title, _INK, font)
    for row, label in enumerate(labels):
        top = row * step_y + 2 * _LINE
        pen.text((_MARGIN, top), "\n".join(textwrap.wrap(label, 24)[:5]), _INK, font)
        for left, batch in zip(halves, (before, after), strict=True):
            for column in range(count):
                sheet.paste(_picture(batch[row * count + column]), (left + column * step_x, top))
    return torch.from_numpy(np.asarray(sheet, dtype=np.float32) / 255).unsqueeze(0)


def _picture(tensor: Tensor) -> Image.Image:
    return Image.fromarray((tensor.clamp(0, 1) * 255).round().to(torch.uint8).numpy())
