"""Sampling pictures inside a node, exactly as the stock KSampler and VAEDecode do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

SAMPLERS: list[str] = comfy.samplers.KSampler.SAMPLERS
SCHEDULERS: list[str] = comfy.samplers.KSampler.SCHEDULERS


@dataclass(frozen=True)
class Sampling:
    """How to sample: the settings of a KSampler and the size of the picture in pixels."""

    seed: int
    steps: int
    cfg: float
    sampler: str
    scheduler: str
    width: int
    height: int


def draw(model: ModelPatcher, positive: Any, negative: Any, vae: Any, how: Sampling, count: int = 1) -> Tensor:
    """Draw `count` pictures from consecutive noise of one seed.

    Returns:
        `[count, height, width, 3]` float32 in 0..1 on the CPU.
    """
    shape = (count, model.model.latent_format.latent_channels, how.height // 8, how.width // 8)
    empty = torch.zeros(shape, device=comfy.model_management.intermediate_device())
    latent = comfy.sample.sample(
        model,
        comfy.sample.prepare_noise(empty, how.seed),
        how.steps,
        how.cfg,
        how.sampler,
        how.scheduler,
        positive,
        negative,
        empty,
        seed=how.seed,
        disable_pbar=True,
    )
    return vae.decode(latent).float().cpu()


def encode_prompt(clip: Any, prompt: str) -> Any:
    """CONDITIONING of a prompt, as the stock CLIPTextEncode gives it."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
