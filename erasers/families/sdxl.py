"""Stable Diffusion XL."""

from __future__ import annotations

from ..sites import CLIP_G, CLIP_L, UNET_FOREIGN, Family
from ..verdicts import UNET

FAMILY = Family(
    name="sdxl",
    title="Stable Diffusion XL",
    stream="clip_l+clip_g",
    width=2048,
    blocks=70,
    pixels=1024,
    pooled_stream="clip_g.pooled",
    pooled_width=1280,
    pooled_site=r"^add_embedding\.linear_1\.weight$",
    proven="sites, edit and weight form on a full-size UNet with random weights; adapters on a reduced one",
    foreign=UNET_FOREIGN,
    prediction=("eps", "v"),
    encoders=(CLIP_L, CLIP_G),
    lora=("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k",),
    hosts=("SDXL", "SDXL_instructpix2pix", "SSD1B", "Segmind_Vega", "KOALA_700M", "KOALA_1B"),
    can=UNET,
)
