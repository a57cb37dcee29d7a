"""Ernie-Image: the tokens of Ministral 3."""

from __future__ import annotations

from ..layers import ERNIE
from ..sites import Encoder, Family
from ..verdicts import UNREACHED

FAMILY = Family(
    name="ernie_image",
    title="Ernie-Image",
    stream="ministral3_3b",
    width=3072,
    blocks=36,
    pixels=1024,
    proven="facts and names of weights at full size; edits and adapters on a reduced model of the host's own class",
    sites=r"^text_proj\.weight$",
    mark=r"^layers\.\d+\.mlp\.linear_fc2\.",
    prediction=("flow",),
    encoders=(Encoder("ministral3_3b", 3072, causal=True, start=True, end=False),),
    lora=("lora_unet_text_proj",),
    hosts=("ErnieImage",),
    layers=ERNIE,
    can=UNREACHED,
)
