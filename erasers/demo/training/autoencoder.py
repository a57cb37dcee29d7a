"""Stage 4: the KL autoencoder that ships, of the standard class, fitted to the latents of stage 1.

Encoder and decoder are trained apart: the encoder to give stage 1's latents, the decoder to draw
pictures from them, with noise on the latents so that it forgives the denoiser's small errors.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from .data import cosine_rate, draw_pictures, psnr, set_rate, to_model_range
from .latents import PatchAutoencoder, crop_batch

LOG = logging.getLogger("lethe")
CONFIG: dict[str, Any] = dict(
    in_channels=3,
    out_channels=3,
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    block_out_channels=(32, 32, 64, 128),
    layers_per_block=1,
    latent_channels=4,
    norm_num_groups=8,
    sample_size=128,
    scaling_factor=1.0,
)
"""Latents have unit scale as they are. The width allows 32 groups, as most KL autoencoders have, but
then every group of the widest pictures would be one channel, whose mean, the colour, is normalised away."""
DECODER_STEPS, ENCODER_STEPS, BATCH, PEAK_RATE = 4200, 1200, 8, 2e-3
WHOLE_SHARE = 0.25
NOISE, LOG_VARIANCE = 0.06, -6.0


def train(folder: Path, teacher: PatchAutoencoder, seed: int = 0) -> dict[str, float]:
    """Fit both halves and write diffusers files to `folder`.

    Returns:
        PSNR in dB on fresh pictures, through both halves and through the decoder on stage 1's latents.
    """
    torch.manual_seed(seed)
    _, pictures = draw_pictures(16_000, seed + 40)
    model: Any = AutoencoderKL(**CONFIG)
    generator = torch.Generator().manual_seed(seed)

    def decoder_loss(batch: Tensor) -> Tensor:
        latents = teacher.encode(batch)
        latents = latents + NOISE * torch.randn(latents.shape, generator=generator)
        with torch.autocast("cpu", torch.bfloat16):
            drawn = model.decode(latents).sample.float()
        return (drawn - batch).square().mean() + (drawn - batch).abs().mean()

    def encoder_loss(batch: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            posterior = model.encode(batch).latent_dist
        spread = (posterior.logvar.float() - LOG_VARIANCE).square().mean()
        return F.mse_loss(posterior.mean.float(), teacher.encode(batch)) + 0.01 * spread

    decoder = [*model.decoder.parameters(), *model.post_quant_conv.parameters()]
    encoder = [*model.encoder.parameters(), *model.quant_conv.parameters()]
    _fit("decoder", decoder, decoder_loss, pictures, DECODER_STEPS, generator)
    _fit("encoder", encoder, encoder_loss, pictures, ENCODER_STEPS, generator)
    model = model.half()
    model.save_pretrained(folder)
    _, fresh = draw_pictures(256, seed + 1)
    return _measure(model.float().eval(), teacher, to_model_range(fresh))


def _fit(
    name: str,
    parameters: list[torch.nn.Parameter],
    loss: Callable[[Tensor], Tensor],
    pictures: Tensor,
    steps: int,
    generator: torch.Generator,
) -> None:
    """Random 64x64 crops first, whole pictures for the last quarter, where the norms see what they will see."""
    optimizer = torch.optim.AdamW(parameters, lr=PEAK_RATE, betas=(0.9, 0.99), weight_decay=0.0)
    for step in range(steps):
        set_rate(optimizer, cosine_rate(step, steps, PEAK_RATE))
        whole = step >= steps * (1 - WHOLE_SHARE)
        value = loss(crop_batch(pictures, BATCH // 2 if whole else BATCH, whole, generator))
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step % 200 == 0:
            LOG.info("%s %d/%d: %.4f", name, step, steps, value.item())


@torch.no_grad()
def _measure(model: Any, teacher: PatchAutoencoder, batch: Tensor) -> dict[str, float]:
    errors: dict[str, list[Tensor]] = {"psnr_db": [], "psnr_decoder_db": []}
    for chunk in batch.split(32):
        for name, latents in (
            ("psnr_db", model.encode(chunk).latent_dist.mean),
            ("psnr_decoder_db", teacher.encode(chunk)),
        ):
            errors[name].append((model.decode(latents).sample.clamp(-1, 1) - chunk).square().mean())
    return {name: round(psnr(torch.stack(values).mean()), 2) for name, values in errors.items()}
