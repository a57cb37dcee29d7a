"""The refiner of Stable Diffusion XL."""

from __future__ import annotations

from ..sites import CLIP_G, UNET_FOREIGN, Family
from ..verdicts import UNET

FAMILY = Family(
    name="sdxl_refiner",
    title="Stable Diffusion XL refiner",
    stream="clip_g",
    width=1280,
    blocks=44,
    pixels=1024,
    pooled_stream="clip_g.pooled",
    pooled_width=1280,
    pooled_site=r"^add_embedding\.linear_1\.weight$",
    proven="facts and names of weights at full size; edits and adapters on a reduced model of the host's own class",
    foreign=UNET_FOREIGN,
    encoders=(CLIP_G,),
    lora=("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k",),
    hosts=("SDXLRefiner",),
    can=UNET,
)
