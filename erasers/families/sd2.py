"""Stable Diffusion 2.x."""

from __future__ import annotations

from ..sites import UNET_FOREIGN, Encoder, Family
from ..verdicts import UNET

FAMILY = Family(
    name="sd2",
    title="Stable Diffusion 2.x",
    stream="clip_h",
    width=1024,
    blocks=16,
    pixels=768,
    proven="facts and names of weights at full size; edits and adapters on a reduced model of the host's own class",
    foreign=UNET_FOREIGN,
    prediction=("v", "eps"),
    encoders=(Encoder("clip_h", 1024, causal=True, start=True, least=77),),
    lora=("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k",),
    hosts=("SD20", "SD21UnclipL", "SD21UnclipH"),
    can=UNET,
)
