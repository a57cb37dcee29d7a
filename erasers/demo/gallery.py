"""Drawing many demo-world pictures outside any host, through diffusers: for tables, sweeps and tests.

Needs the optional packages diffusers and transformers.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from ..concepts import ConceptList
from ..diffusers_host import DiffusersModel, attach_modules, named_tower, write_eraser, write_text_edits
from ..gated import GatedParts
from ..painter import Shot, prompted, sketch
from ..provenance import fingerprint
from ..result import Eraser
from ..spec import Value
from ..store.preserve_cache import PreserveCache
from ..task import Task
from .world import CFG, STEPS, WEIGHTS, judge


class Gallery:
    """The demo world's parts as diffusers loads them, and a batched DDIM sampler."""

    def __init__(self, folder: Path = WEIGHTS, steps: int = STEPS, cfg: float = CFG) -> None:
        self.steps, self.cfg = steps, cfg
        unet: Any = UNet2DConditionModel.from_pretrained(folder / "unet").float().eval()
        text = CLIPTextModel.from_pretrained(folder / "text_encoder").float().eval()
        scheduler = DDIMScheduler.from_pretrained(folder / "scheduler")
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        self.model = DiffusersModel(unet, scheduler, tokenizer, text, autocast=True)
        self.vae: Any = AutoencoderKL.from_pretrained(folder / "vae").float().eval()
        self.encoder = fingerprint(text.named_parameters())
        self.grams = PreserveCache()

    def task(self, concepts: ConceptList) -> Task:
        """A task on this model."""
        model = self.model
        return Task(concepts, model.family, self.encoder, model.encode, model, self.grams, sight=Sight(self))

    def erased(self, eraser: Eraser, strength: float = 1.0) -> Gallery:
        """A gallery of the same world with an eraser applied: its operator to the text features, the rest to copies."""
        model = self.model
        unet, text = copy.deepcopy(model.unet), copy.deepcopy(model.text_model)
        unet.load_state_dict(write_eraser(unet, eraser, strength, context=False, gated=False), strict=False)
        attach_modules(unet, eraser, strength)
        edited = write_text_edits(text, model.family.stream, eraser, strength)
        named_tower(text).load_state_dict(edited, strict=False)
        operator = eraser.context.get(model.family.stream)
        gated = GatedParts([(member, strength) for member in eraser.members]) if eraser.members else None
        found = copy.copy(self)
        found.model = DiffusersModel(
            unet, model.scheduler, model.tokenizer, text, model.autocast, operator and operator.scaled(strength), gated
        )
        return found

    @torch.no_grad()
    def draw(self, prompts: Sequence[str], seed: int = 0, steps: int = STEPS, cfg: float = CFG) -> Tensor:
        """Draw one picture per prompt.

        Args:
            prompts: n prompts; picture i has noise of its own, the same for the same seed and i.

        Returns:
            `[n, 3, 128, 128]` float32 in 0..1.
        """
        return self.decode(self.model.sample(list(prompts), steps, cfg, seed))

    def paint(self, shots: Sequence[Shot]) -> Tensor:
        """One picture per shot (painter.Painter)."""
        return self.decode(self.model.sample_shots(shots, self.steps, self.cfg))

    def settings(self) -> dict[str, Value]:
        """How pictures are drawn (painter.Painter)."""
        return {"sampler": "ddim", "steps": self.steps, "cfg": self.cfg, "width": 128, "height": 128}

    def sketch(self, prompts: Sequence[str]) -> Tensor:
        """What tells this gallery from one with another eraser (painter.Painter)."""
        shots = [Shot(prompted(prompt), seed) for seed, prompt in enumerate(prompts)]
        return sketch(self.model.sample_shots(shots, 2, self.cfg))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents `[n, 4, 16, 16]` to pictures."""
        found = []
        for chunk in latents.split(50):
            with torch.autocast("cpu", torch.bfloat16):
                found.append(self.vae.decode(chunk / self.vae.config["scaling_factor"]).sample.float())
        return ((torch.cat(found) + 1) / 2).clamp(0, 1)


class Sight:
    """The demo world's image/text pair: the judge's projection beside the text encoder's pooled state."""

    def __init__(self, gallery: Gallery) -> None:
        self.gallery = gallery

    def embed_latents(self, latents: Tensor) -> Tensor:
        """`[n, 4, 16, 16]` to `[n, e]`."""
        return self.embed_images(self.gallery.decode(latents))

    def embed_images(self, images: Tensor) -> Tensor:
        """`[n, 3, h, w]` in 0..1 to `[n, e]`."""
        return judge()(images)[1]

    def embed_text(self, prompts: list[str]) -> Tensor:
        """Prompts to `[n, e]`."""
        return self.gallery.model.tower().run(prompts)[1]
