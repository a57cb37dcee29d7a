"""Where the demo world's weights lie, and what a host has to know to build its models."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from .judge import Judge, load_judge

WEIGHTS = Path(__file__).parent / "weights"
"""A diffusers pipeline folder: unet, vae, text_encoder, tokenizer, scheduler; and the judge."""

STEPS, CFG = 20, 4.0
"""Sampling settings that the figures of the demo world were taken with (DDIM or Euler)."""


@cache
def judge() -> Judge:
    """The judge, loaded once."""
    return load_judge(WEIGHTS / "judge.safetensors")


def config_of(part: str) -> dict[str, Any]:
    """The diffusers configuration of "unet", "vae" or "text_encoder"."""
    return json.loads((WEIGHTS / part / "config.json").read_text(encoding="utf-8"))


def weights_of(part: str) -> Path:
    """The weights of a part."""
    name = "model" if part == "text_encoder" else "diffusion_pytorch_model"
    return WEIGHTS / part / f"{name}.safetensors"


def weights_digest() -> str:
    """A hash of everything a picture depends on and of the judge; tables carry it, to tell whether they still hold."""
    paths = [weights_of(part) for part in ("unet", "vae", "text_encoder")] + [WEIGHTS / "judge.safetensors"]
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:16]


def latent_colours() -> list[list[float]]:
    """RGB of each latent channel, `[4][3]`, and of a zero latent as a fifth row; for previews."""
    return json.loads((WEIGHTS / "latent_colours.json").read_text(encoding="utf-8"))
