"""A Stable Diffusion pipeline as a place to fit an eraser to and to draw with, outside any host.

The text encoder stays on the CPU, where methods and attacks want its features; UNet and VAE may lie on another device.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from .clip_folder import FolderSight
from .concepts import ConceptList
from .diffusers_host import DiffusersModel, attach_modules, named_tower, write_eraser, write_text_edits
from .errors import SettingError
from .gated import GatedParts
from .painter import Shot, alike, prompted, sketch
from .pipeline_parts import Parts
from .provenance import fingerprint
from .result import Bottleneck, ContextOperator, Eraser
from .sight import Sight
from .spec import Value
from .store.preserve_cache import PreserveCache
from .task import Task

CPU = torch.device("cpu")
CFG = 7.5
"""The guidance scale that Stable Diffusion 1 and 2 are mostly drawn with."""
Own = TypeVar("Own", bound="Pipeline")


class Pipeline:
    """A pipeline's parts and a batched DDIM sampler (painter.Painter).

    Args:
        parts: as `load_parts` gives them; UNet and VAE are moved to the device.
        steps, cfg: DDIM steps and guidance scale of every picture.
        batch: pictures drawn at a time.
        device: for the UNet and the VAE.
        bf16: draw in bfloat16.

    Attributes:
        model: the model as methods see it.
        encoder: fingerprint of the text encoder.
    """

    def __init__(
        self,
        parts: Parts,
        steps: int = 20,
        cfg: float = CFG,
        batch: int = 8,
        device: torch.device = CPU,
        bf16: bool = False,
    ) -> None:
        self.steps, self.cfg, self.batch = steps, cfg, batch
        self.model = DiffusersModel(parts.unet.to(device), parts.scheduler, parts.tokenizer, parts.text_model, bf16)
        self.vae = parts.vae.to(device)
        self.encoder = fingerprint(parts.text_model.named_parameters())
        self.grams = PreserveCache()

    @property
    def sight(self) -> Sight | None:
        """An image encoder of the text encoder's own pair, where one comes with the pipeline."""
        return None

    def task(self, concepts: ConceptList, sight: Sight | None = None) -> Task:
        """A task on this model; `sight` in place of the pipeline's own."""
        model, sight = self.model, sight or self.sight
        return Task(concepts, model.family, self.encoder, model.encode, model, self.grams, sight=sight)

    def erased(self: Own, eraser: Eraser, strength: float = 1.0) -> Own:
        """The same with an eraser applied: its operator to the text features, the rest to copies."""
        model, device = self.model, self.model.device()
        eraser = _on(eraser, device)
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

    def paint(self, shots: Sequence[Shot]) -> Tensor:
        """One picture per shot (painter.Painter)."""
        found: dict[int, Tensor] = {}
        for places in alike(shots, self.batch):
            latents = self.model.sample_shots([shots[place] for place in places], self.steps, self.cfg)
            found.update(zip(places, self.decode(latents), strict=True))
        return torch.stack([found[place] for place in range(len(shots))])

    def settings(self) -> dict[str, Value]:
        """How pictures are drawn (painter.Painter)."""
        _, height, width = self.model.latent_shape()
        factor = 2 ** (len(self.vae.config["block_out_channels"]) - 1)
        size = {"width": width * factor, "height": height * factor}
        return {"sampler": "ddim", "steps": self.steps, "cfg": self.cfg, **size}

    def sketch(self, prompts: Sequence[str]) -> Tensor:
        """What tells this pipeline from one with another eraser (painter.Painter)."""
        shots = [Shot(prompted(prompt), seed) for seed, prompt in enumerate(prompts)]
        return sketch(self.model.sample_shots(shots, 2, self.cfg))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents `[n, c, h, w]` to pictures `[n, 3, H, W]` float32 in 0..1 on the CPU."""
        device, found = self.vae.device, []
        for chunk in latents.split(self.batch):
            with torch.autocast(device.type, torch.bfloat16, enabled=self.model.autocast):
                given = chunk.to(device) / self.vae.config["scaling_factor"]
                found.append(self.vae.decode(given).sample.float().cpu())
        return ((torch.cat(found) + 1) / 2).clamp(0, 1)


class PairedSight:
    """A pipeline's own text encoder beside the image half of its CLIP (sight.Sight).

    Args:
        pipeline: what decodes latents, and reads prompts.
        folder: the CLIP that the text encoder is from.

    Raises:
        SettingError: that CLIP's text encoder has another width.
    """

    def __init__(self, pipeline: Pipeline, folder: FolderSight) -> None:
        self.pipeline, self.folder = pipeline, folder
        own, other = pipeline.model.family.width, folder.model.text_projection.in_features
        if own != other:
            raise SettingError(
                f"The CLIP in '{folder.folder}' reads text in width {other}, the pipeline in {own}.",
                "Give --clip the CLIP that the pipeline's text encoder is from.",
            )

    def embed_images(self, images: Tensor) -> Tensor:
        return self.folder.embed_images(images)

    def embed_latents(self, latents: Tensor) -> Tensor:
        return self.embed_images(self.pipeline.decode(latents))

    def embed_text(self, prompts: list[str]) -> Tensor:
        return self.folder.model.text_projection(self.pipeline.model.tower().run(prompts)[1])


def _on(eraser: Eraser, device: torch.device) -> Eraser:
    """An eraser with all that acts beside the weights, or is added to them, on a device; gates stay where they are."""
    if device == CPU:
        return eraser

    def moved(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.to(device) for name, tensor in tensors.items()}

    return replace(
        eraser,
        context={stream: ContextOperator(**moved(own.tensors())) for stream, own in eraser.context.items()},
        adapters={name: type(own)(**moved(own.tensors())) for name, own in eraser.adapters.items()},
        modules={name: Bottleneck(**moved(own.tensors())) for name, own in eraser.modules.items()},
    )
