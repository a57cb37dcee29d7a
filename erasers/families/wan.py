"""Wan 2.1 and 2.2: the tokens of UMT5."""

from __future__ import annotations

from ..layers import WAN
from ..sites import Encoder, Family, TextKeys
from ..verdicts import VIDEO

FAMILY = Family(
    name="wan",
    title="Wan 2.1 and 2.2",
    stream="umt5xxl",
    width=4096,
    blocks=40,
    pixels=832,
    proven="facts and names of weights at full size; edits and adapters on a reduced model of the host's own class",
    sites=r"^text_embedding\.0\.weight$",
    mark=r"^blocks\.\d+\.cross_attn\.k\.weight$",
    prediction=("flow",),
    encoders=(Encoder("umt5xxl", 4096, least=512, padding_read=False),),
    lora=("lora_unet_text_embedding_0",),
    hosts=(
        "WAN21_T2V",
        "WAN21_I2V",
        "WAN21_Camera",
        "WAN21_CausalAR_T2V",
        "WAN21_FunControl2V",
        "WAN21_HuMo",
        "WAN21_SCAIL",
        "WAN21_SCAIL2",
        "WAN21_Vace",
        "WAN22_T2V",
        "WAN22_Animate",
        "WAN22_Camera",
        "WAN22_S2V",
        "WAN22_WanDancer",
    ),
    layers=WAN,
    can=VIDEO,
    text_keys=TextKeys(joint=False),
)
