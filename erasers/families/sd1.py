"""Stable Diffusion 1.x."""

from __future__ import annotations

from ..sites import CLIP_L, UNET_FOREIGN, Family
from ..verdicts import UNET

FAMILY = Family(
    name="sd1",
    title="Stable Diffusion 1.x",
    stream="clip_l",
    width=768,
    blocks=16,
    pixels=512,
    proven="sites, edit and weight form on a full-size UNet with random weights; adapters on a reduced one",
    foreign=UNET_FOREIGN,
    encoders=(CLIP_L,),
    lora=("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k",),
    hosts=("SD15", "SD15_instructpix2pix"),
    can=UNET,
)
