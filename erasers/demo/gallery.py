"""Drawing many demo-world pictures outside any host, through diffusers: for tables, sweeps and tests.

Needs the optional packages diffusers and transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from ..diffusers_host import text_encoder
from ..provenance import fingerprint
from ..result import ContextOperator
from .world import CFG, STEPS, WEIGHTS

BATCH = 50


class Gallery:
    """The demo world's parts as diffusers loads them, and a batched DDIM sampler.

    The networks run under bfloat16 autocast, which is twice as fast on CPUs with matrix units.
    """

    def __init__(self, folder: Path = WEIGHTS) -> None:
        self.unet: Any = UNet2DConditionModel.from_pretrained(folder / "unet").float().eval()
        self.vae: Any = AutoencoderKL.from_pretrained(folder / "vae").float().eval()
        text = CLIPTextModel.from_pretrained(folder / "text_encoder").float().eval()
        self.encode = text_encoder(CLIPTokenizer.from_pretrained(folder / "tokenizer"), text)
        self.encoder = fingerprint(text.named_parameters())
        self.scheduler: Any = DDIMScheduler.from_pretrained(folder / "scheduler")

    @torch.no_grad()
    def draw(
        self,
        prompts: Sequence[str],
        seed: int = 0,
        operator: ContextOperator | None = None,
        steps: int = STEPS,
        cfg: float = CFG,
    ) -> Tensor:
        """Draw one picture per prompt.

        Args:
            prompts: n prompts; picture i has noise of its own, the same for the same seed and i.
            operator: a context operator to pass all text features through, the empty prompt's too.

        Returns:
            `[n, 3, 128, 128]` float32 in 0..1.
        """
        noise = torch.randn(len(prompts), 4, 16, 16, generator=torch.Generator().manual_seed(seed))
        found = []
        for start in range(0, len(prompts), BATCH):
            chunk = list(prompts[start : start + BATCH])
            context = torch.stack([prompt.states for prompt in self.encode([*chunk, ""])])
            if operator is not None:
                context = operator.apply(context)
            latents = self._sample(noise[start : start + BATCH], context[:-1], context[-1:], steps, cfg)
            with torch.autocast("cpu", torch.bfloat16):
                found.append(self.vae.decode(latents / self.vae.config["scaling_factor"]).sample.float())
        return ((torch.cat(found) + 1) / 2).clamp(0, 1)

    def _sample(self, x: Tensor, context: Tensor, empty: Tensor, steps: int, cfg: float) -> Tensor:
        both = torch.cat([context, empty.expand_as(context)])
        self.scheduler.set_timesteps(steps)
        for time in self.scheduler.timesteps:
            with torch.autocast("cpu", torch.bfloat16):
                said, unsaid = self.unet(torch.cat([x, x]), time, both).sample.float().chunk(2)
            x = self.scheduler.step(unsaid + cfg * (said - unsaid), time, x).prev_sample
        return x
