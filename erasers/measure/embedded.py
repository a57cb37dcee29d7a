"""Pictures and texts as directions in an image encoder's space: embeddings of length 1."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import NumericsError, SettingError
from ..probe import View
from ..sight import Sight

Part = TypeVar("Part", Tensor, list[str])
_BATCH = 32
"""Pictures or texts at a time: what CLIP ViT-L/14 holds beside a diffusion model on an 8 GB card."""

NO_SIGHT = "Connect a CLIP vision model with its CLIP, or choose a folder that holds a whole CLIP model."
"""What a probe that needs an image encoder says where there is none."""


def sight_of(view: View) -> Sight:
    """The view's image encoder; SettingError where it has none."""
    if view.sight is None:
        raise SettingError("This probe needs an image encoder.", NO_SIGHT)
    return view.sight


def directions_of_pictures(sight: Sight, pictures: Tensor) -> Tensor:
    """Pictures `[n, 3, h, w]` in 0..1 to `[n, e]` float32 on the CPU, of length 1.

    Raises:
        NumericsError: an embedding is not finite, or is zero.
    """
    return _directions(sight.embed_images, list(pictures.split(_BATCH)), "pictures")


def directions_of_texts(sight: Sight, texts: Sequence[str]) -> Tensor:
    """Texts, n of them, to `[n, e]` float32 on the CPU, of length 1; each is embedded once, however often it stands.

    Raises:
        NumericsError: an embedding is not finite, or is zero.
    """
    once = list(dict.fromkeys(texts))
    found = _directions(sight.embed_text, [once[i : i + _BATCH] for i in range(0, len(once), _BATCH)], "texts")
    return found[[once.index(text) for text in texts]]


@torch.no_grad()
def _directions(embed: Callable[[Part], Tensor], parts: list[Part], name: str) -> Tensor:
    found = torch.cat([embed(part).float().cpu() for part in parts])
    length = found.norm(dim=1)
    if not bool((torch.isfinite(length) & (length > 0)).all()):
        raise NumericsError(
            f"The image encoder's embeddings of {name} are not finite, or zero.",
            "Check the pictures, and load the encoder in float32: half precision can overflow.",
        )
    return F.normalize(found, dim=1)
