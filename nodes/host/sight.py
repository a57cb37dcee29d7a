"""A CLIP vision model beside the CLIP and the VAE, as methods see them (erasers/sight.py)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .model import HostModel
from .pictures import decode_pictures


class HostSight:
    """Fulfils `erasers.sight.Sight`.

    Args:
        model: the model whose text encoder and latents it reads.
        vae: decodes its latents.
        vision: a CLIP_VISION of the same pair as the model's text encoder.
    """

    def __init__(self, model: HostModel, vae: Any, vision: Any) -> None:
        self.model, self.vae, self.vision = model, vae, vision

    def embed_images(self, images: Tensor) -> Tensor:
        return self.vision.encode_image(images.movedim(1, -1))["image_embeds"].float().cpu()

    def embed_latents(self, latents: Tensor) -> Tensor:
        pictures = decode_pictures(self.vae, self.model.patcher.model.process_latent_out(latents))
        return self.embed_images(pictures.movedim(-1, 1))

    def embed_text(self, prompts: list[str]) -> Tensor:
        return self.model.tower().run(prompts)[1].cpu()
