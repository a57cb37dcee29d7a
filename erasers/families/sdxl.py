"""Stable Diffusion XL."""

from __future__ import annotations

from ..sites import Family

FAMILY = Family(
    name="sdxl",
    title="Stable Diffusion XL",
    stream="clip_l+clip_g",
    width=2048,
    blocks=70,
    proven="sites, edit and weight form on a full-size UNet with random weights",
)
