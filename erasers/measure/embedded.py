"""Pictures and texts as directions in an image encoder's space: embeddings of length 1."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import NumericsError, SettingError
from ..probe import View
from ..sight import Sight

Part = TypeVar("Part", Tensor, list[str])
EMBEDDED_AT_ONCE = 32
"""Pictures or texts at a time: what CLIP ViT-L/14 holds beside a diffusion model on an 8 GB card."""

NO_SIGHT = "Connect a CLIP vision model with its CLIP, or choose a folder that holds a whole CLIP model."
"""What a probe that needs an image encoder says where there is none."""


class RememberedSight:
    """A sight that does not look twice at pictures that several probes ask about in turn (fulfils `sight.Sight`).

    Pictures are the same when they are the same memory; those remembered are held, so that it is not given away.

    Args:
        sight: does the looking.
        room: batches remembered.
    """

    def __init__(self, sight: Sight, room: int) -> None:
        self.sight = sight
        self._known: deque[tuple[Tensor, Tensor]] = deque(maxlen=room)

    def embed_images(self, images: Tensor) -> Tensor:
        for known, found in self._known:
            if (known.data_ptr(), known.shape, known.stride()) == (images.data_ptr(), images.shape, images.stride()):
                return found
        found = self.sight.embed_images(images)
        self._known.append((images, found))
        return found

    def embed_latents(self, latents: Tensor) -> Tensor:
        return self.sight.embed_latents(latents)

    def embed_text(self, prompts: list[str]) -> Tensor:
        return self.sight.embed_text(prompts)


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
    return _directions(sight.embed_images, list(pictures.split(EMBEDDED_AT_ONCE)), "pictures")


def directions_of_texts(sight: Sight, texts: Sequence[str]) -> Tensor:
    """Texts, n of them, to `[n, e]` float32 on the CPU, of length 1; each is embedded once, however often it stands.

    Raises:
        NumericsError: an embedding is not finite, or is zero.
    """
    once = list(dict.fromkeys(texts))
    found = _directions(
        sight.embed_text, [once[i : i + EMBEDDED_AT_ONCE] for i in range(0, len(once), EMBEDDED_AT_ONCE)], "texts"
    )
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
