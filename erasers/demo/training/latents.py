"""Stage 1: find the latent space with a patch autoencoder, which trains several times faster than a KL one.

Everything it does happens at 16x16, so a CPU can afford it. The standard autoencoder that ships
(stage 4) is then fitted to these latents; the denoiser does not have to wait for it.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .data import cosine_rate, draw_pictures, psnr, set_rate, to_model_range

LOG = logging.getLogger("lethe")
WIDTH, DEPTH, PATCH, CHANNELS = 128, 3, 8, 4
STEPS, BATCH, PEAK_RATE, NOISE, SIZE_WEIGHT = 3600, 32, 2e-3, 0.05, 1e-4


class PatchAutoencoder(nn.Module):
    """Pictures `[B, 3, 8h, 8w]` in -1..1 to latents `[B, 4, h, w]` of unit scale, and back."""

    def __init__(self) -> None:
        super().__init__()
        fan = 3 * PATCH * PATCH
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(PATCH), nn.Conv2d(fan, WIDTH, 3, 1, 1), *_tower(), nn.Conv2d(WIDTH, CHANNELS, 1)
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(CHANNELS, WIDTH, 3, 1, 1), *_tower(), nn.Conv2d(WIDTH, fan, 3, 1, 1), nn.PixelShuffle(PATCH)
        )
        self.scale = nn.Buffer(torch.ones(()))

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        return self.encoder(pictures) * self.scale

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        return self.decoder(latents / self.scale)


class _Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, WIDTH)
        self.first = nn.Conv2d(WIDTH, WIDTH, 3, 1, 1)
        self.second = nn.Conv2d(WIDTH, WIDTH, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.silu(self.first(self.norm(x))))


def _tower() -> list[nn.Module]:
    return [_Residual() for _ in range(DEPTH)]


def train(path: Path, seed: int = 0) -> dict[str, float]:
    """Train on random 64x64 crops, the last fifth on whole pictures; write the weights to `path`.

    Returns:
        PSNR in dB on fresh pictures.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    _, pictures = draw_pictures(12_000, seed)
    model = PatchAutoencoder()
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.99), weight_decay=0.0)
    for step in range(STEPS):
        set_rate(optimizer, cosine_rate(step, STEPS, PEAK_RATE))
        whole = step >= STEPS * 4 // 5
        batch = crop_batch(pictures, BATCH // 4 if whole else BATCH, whole, generator)
        with torch.autocast("cpu", torch.bfloat16):
            latents = model.encoder(batch)
            output = model.decoder(latents + NOISE * torch.randn_like(latents)).float()
        error = (output - batch).square().mean()
        loss = error + (output - batch).abs().mean() + SIZE_WEIGHT * latents.float().square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 200 == 0:
            LOG.info("latents %d/%d: %.1f dB", step, STEPS, psnr(error))
    _, fresh = draw_pictures(512, seed + 1)
    batch = to_model_range(fresh)
    model.scale.fill_(1 / model.encode(batch).std())
    quality = psnr((model.decode(model.encode(batch)).clamp(-1, 1) - batch).square().mean())
    save_file(model.state_dict(), path)
    return {"psnr_db": round(quality, 2)}


def load_latents(path: Path) -> PatchAutoencoder:
    """The trained stage 1, in float32."""
    model = PatchAutoencoder()
    model.load_state_dict(load_file(path))
    return model.requires_grad_(False).eval()


def crop_batch(pictures: Tensor, size: int, whole: bool, generator: torch.Generator) -> Tensor:
    """Random pictures, whole or one 64x64 crop of each, as float32 in -1..1."""
    chosen = pictures[torch.randint(len(pictures), (size,), generator=generator)]
    if not whole:
        x, y = torch.randint(0, 65, (2, size), generator=generator)
        crops = zip(chosen, x.tolist(), y.tolist(), strict=True)
        chosen = torch.stack([c[:, v : v + 64, u : u + 64] for c, u, v in crops])
    return to_model_range(chosen)
