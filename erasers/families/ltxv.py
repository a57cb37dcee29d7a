"""LTX-Video: the tokens of T5, through a caption projection."""

from __future__ import annotations

from ..layers import PLAIN
from ..sites import Encoder, Family, TextKeys
from ..verdicts import VIDEO

FAMILY = Family(
    name="ltxv",
    title="LTX-Video",
    stream="t5xxl",
    width=4096,
    blocks=28,
    pixels=768,
    proven="facts and names of weights at full size; edits and adapters on a reduced model of the host's own class",
    sites=r"^caption_projection\.linear_1\.weight$",
    mark=r"^transformer_blocks\.\d+\.attn2\.",
    foreign=r"^audio_",
    prediction=("flow",),
    encoders=(Encoder("t5xxl", 4096, least=128, padding_read=False),),
    lora=("lora_unet_caption_projection_linear_1",),
    hosts=("LTXV",),
    layers=PLAIN,
    can=VIDEO,
    text_keys=TextKeys(joint=False),
)
