"""CogVideoX: the tokens of T5."""

from __future__ import annotations

from ..layers import COGVIDEOX
from ..sites import Encoder, Family, TextKeys
from ..verdicts import VIDEO

FAMILY = Family(
    name="cogvideox",
    title="CogVideoX",
    stream="t5xxl",
    width=4096,
    blocks=42,
    pixels=720,
    proven="facts and names of weights at full size; edits and adapters on a reduced model of the host's own class",
    sites=r"^patch_embed\.text_proj\.weight$",
    prediction=("raw v",),
    encoders=(Encoder("t5xxl", 4096, least=226),),
    lora=("lora_unet_patch_embed_text_proj",),
    hosts=("CogVideoX_T2V", "CogVideoX_I2V", "CogVideoX_Inpaint"),
    layers=COGVIDEOX,
    can=VIDEO,
    text_keys=TextKeys(joint=True, always=True, marked=False),
)
