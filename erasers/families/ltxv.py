"""LTX-Video: the tokens of T5, through a caption projection."""

from __future__ import annotations

from ..sites import Encoder, Family
from ..verdicts import IN_PLACE

FAMILY = Family(
    name="ltxv",
    title="LTX-Video",
    stream="t5xxl",
    width=4096,
    blocks=28,
    pixels=768,
    proven="facts and names of weights at full size; closed-form edits on a reduced model of the host's own class",
    sites=r"^caption_projection\.linear_1\.weight$",
    mark=r"^transformer_blocks\.\d+\.attn2\.",
    foreign=r"^audio_",
    prediction=("flow",),
    encoders=(Encoder("t5xxl", 4096, least=128, padding_read=False),),
    lora=("lora_unet_caption_projection_linear_1",),
    hosts=("LTXV",),
    can=IN_PLACE,
)
