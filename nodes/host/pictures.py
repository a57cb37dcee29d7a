"""Pictures as a model reads them, and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...erasers.errors import SettingError


def encode_pictures(model: Any, vae: Any, pictures: Tensor) -> Tensor:
    """Pictures `[n, h, w, 3]` to latents as the model reads them; SettingError without a VAE."""
    if vae is None:
        raise SettingError("Pictures were connected without a VAE.", "Connect the VAE that belongs to the model.")
    latents = torch.cat([vae.encode(picture[None, ..., :3]) for picture in pictures])
    return model.patcher.model.process_latent_in(latents).float().cpu()


def decode_pictures(vae: Any, latents: Tensor) -> Tensor:
    """Latents as a sampler gives them to pictures `[n, h, w, 3]` in 0..1, float32 on the CPU."""
    pictures = vae.decode(latents)
    # A video's VAE gives frames: the first of them.
    return (pictures[:, 0] if pictures.ndim == 5 else pictures)[..., :3].float().cpu()


def fitted_regions(regions: Tensor | None, latents: Tensor) -> Tensor | None:
    """Regions at the latents' size, one for each."""
    if regions is None:
        return None
    if len(regions) not in (1, len(latents)):
        raise SettingError(
            f"There are {len(regions)} masks for {len(latents)} pictures.", "Connect one for each, or one for all."
        )
    found = torch.nn.functional.interpolate(regions[:, None].float().cpu(), latents.shape[-2:], mode="area")[:, 0]
    return found.expand(len(latents), -1, -1)
