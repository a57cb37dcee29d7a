"""Stage 5: gather the trained parts as a diffusers pipeline folder in half precision."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from diffusers import DDIMScheduler
from safetensors.torch import load_file, save_file
from torch import Tensor

from .data import draw_pictures, to_model_range
from .denoiser import SCHEDULE
from .latents import PatchAutoencoder

_PARTS = {
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "scheduler": ("diffusers", "DDIMScheduler"),
}


def export(source: Path, target: Path, teacher: PatchAutoencoder) -> dict[str, float]:
    """Write the pipeline folder `target`.

    Returns:
        Its size in megabytes.
    """
    target.mkdir(parents=True, exist_ok=True)
    for part in ("unet", "vae", "text_encoder", "tokenizer"):
        shutil.copytree(source / part, target / part, dirs_exist_ok=True)
    shutil.copy(source / "judge.safetensors", target)
    _name_text_encoder(target / "text_encoder" / "model.safetensors")
    DDIMScheduler(**SCHEDULE).save_pretrained(target / "scheduler")
    _write(target / "latent_colours.json", _latent_colours(teacher))
    extra = {"safety_checker": [None, None], "feature_extractor": [None, None], "requires_safety_checker": False}
    _write(target / "model_index.json", {"_class_name": "StableDiffusionPipeline", **_PARTS, **extra})
    _write(target / "training.json", json.loads((source / "training.json").read_text(encoding="utf-8")))
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    return {"megabytes": round(size / 1e6, 2)}


def _name_text_encoder(path: Path) -> None:
    """Prefix the parameter names as published CLIP text encoders have them."""
    weights = load_file(path)
    prefix = "text_model."
    named = {name if name.startswith(prefix) else prefix + name: value for name, value in weights.items()}
    save_file(named, path, metadata={"format": "pt"})


def _latent_colours(teacher: PatchAutoencoder) -> list[list[float]]:
    """Least-squares RGB of each latent channel, and of a zero latent."""
    _, pictures = draw_pictures(256, 3)
    batch = to_model_range(pictures)
    latents = teacher.encode(batch).movedim(1, -1).reshape(-1, 4)
    colours = torch.nn.functional.avg_pool2d(batch, 8).movedim(1, -1).reshape(-1, 3)
    ones: Tensor = torch.ones(len(latents), 1)
    found = torch.linalg.lstsq(torch.cat([latents, ones], 1), colours).solution
    return [[round(value, 4) for value in row] for row in found.tolist()]


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
