"""Stage 3: the denoiser, a Stable Diffusion 1 type UNet, epsilon prediction on the frozen text encoder."""

from __future__ import annotations

import copy
import logging
import random
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from ..grammar import describe
from .data import cosine_rate, draw_pictures, set_rate, shuffled_batches, to_model_range
from .latents import PatchAutoencoder

LOG = logging.getLogger("lethe")
CONFIG: dict[str, Any] = dict(
    sample_size=16,
    block_out_channels=(64, 128),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    layers_per_block=1,
    cross_attention_dim=192,
    attention_head_dim=4,
    norm_num_groups=32,
)
SCHEDULE: dict[str, Any] = dict(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    clip_sample=False,
    set_alpha_to_one=False,
    steps_offset=1,
)
PICTURES, CAPTIONS = 32_000, 2
BATCH, PEAK_RATE, EMA, SNR_CAP, EMPTY, ALIASES = 64, 1.2e-3, 0.999, 5.0, 0.1, 0.08


def train(
    folder: Path,
    autoencoder: PatchAutoencoder,
    text: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    steps: int,
    seed: int = 0,
) -> dict[str, float]:
    """Train for `steps` optimiser steps and write the averaged weights to `folder`.

    Returns:
        Samples seen, seconds, final loss.
    """
    torch.manual_seed(seed)
    scenes, pictures = draw_pictures(PICTURES, seed + 20)
    latents = encode_pictures(autoencoder, pictures)
    del pictures
    rng = random.Random(seed + 20)
    captions = [describe(scene, rng, ALIASES) for scene in scenes for _ in range(CAPTIONS)]
    context = encode_captions(text, tokenizer, [*captions, ""])
    LOG.info("denoiser: %d latents, %d captions ready", len(latents), len(captions))
    model = UNet2DConditionModel(**CONFIG)
    average = copy.deepcopy(model).requires_grad_(False)
    started, loss = time.perf_counter(), _fit(model, average, latents, context, steps, seed, folder)
    average.half().save_pretrained(folder)
    seconds = time.perf_counter() - started
    return {"samples": steps * BATCH, "seconds": round(seconds), "loss": round(loss, 4)}


def _fit(
    model: UNet2DConditionModel,
    average: UNet2DConditionModel,
    latents: Tensor,
    context: Tensor,
    steps: int,
    seed: int,
    folder: Path,
) -> float:
    alphas = DDIMScheduler(**SCHEDULE).alphas_cumprod
    snr = alphas / (1 - alphas)
    weights = snr.clamp(max=SNR_CAP) / snr
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.99), weight_decay=0.01)
    generator = torch.Generator().manual_seed(seed)
    batches = shuffled_batches(len(latents), BATCH, generator)
    recent = 0.0
    for step in range(steps):
        set_rate(optimizer, cosine_rate(step, steps, PEAK_RATE, warmup=200))
        rows = next(batches)
        which = rows * CAPTIONS + torch.randint(CAPTIONS, (BATCH,), generator=generator)
        which[torch.rand(BATCH, generator=generator) < EMPTY] = len(context) - 1
        times = torch.randint(0, len(alphas), (BATCH,), generator=generator)
        noise = torch.randn(BATCH, 4, 16, 16, generator=generator)
        level = alphas[times].view(-1, 1, 1, 1)
        noisy = level.sqrt() * latents[rows] + (1 - level).sqrt() * noise
        with torch.autocast("cpu", torch.bfloat16):
            guess = model(noisy, times, context[which].float()).sample.float()
        loss = ((guess - noise).square().mean((1, 2, 3)) * weights[times]).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        keep = min(EMA, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - keep)
        recent = loss.item() if step == 0 else 0.98 * recent + 0.02 * loss.item()
        if step % 100 == 0:
            LOG.info("denoiser %d/%d: %.4f", step, steps, recent)
        if step % 1000 == 999:
            copy.deepcopy(average).half().save_pretrained(folder.with_name(folder.name + "-checkpoint"))
    return recent


@torch.no_grad()
def encode_pictures(autoencoder: PatchAutoencoder, pictures: Tensor) -> Tensor:
    """`[N, 3, 128, 128]` uint8 to latents of unit scale `[N, 4, 16, 16]` float32."""
    found = []
    for chunk in pictures.split(64):
        with torch.autocast("cpu", torch.bfloat16):
            found.append(autoencoder.encode(to_model_range(chunk)).float())
    return torch.cat(found)


@torch.no_grad()
def encode_captions(text: CLIPTextModel, tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Captions to their 77 final states `[N, 77, width]` float16."""
    found = []
    for start in range(0, len(captions), 256):
        chunk = captions[start : start + 256]
        ids = tokenizer(chunk, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
        with torch.autocast("cpu", torch.bfloat16):
            found.append(text(ids).last_hidden_state.half())
    return torch.cat(found)
