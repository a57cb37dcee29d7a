"""Cosmos Predict2: the tokens of the first T5."""

from __future__ import annotations

from ..layers import COSMOS2
from ..sites import Encoder, Family, TextKeys
from ..verdicts import VIDEO

FAMILY = Family(
    name="cosmos2",
    title="Cosmos Predict2",
    stream="t5xxl",
    width=1024,
    blocks=28,
    pixels=1024,
    proven="facts and names of weights at full size; edits and adapters on a reduced model of the host's own class",
    sites=r"^blocks\.\d+\.cross_attn\.(?P<role>[kv])_proj\.weight$",
    foreign=r"^llm_adapter\.",
    prediction=("cosmos flow",),
    encoders=(Encoder("t5xxl", 1024, least=512, padding_read=False),),
    lora=("lora_unet_blocks_0_cross_attn_k_proj",),
    hosts=("CosmosT2IPredict2", "CosmosI2VPredict2"),
    layers=COSMOS2,
    can=VIDEO,
    text_keys=TextKeys(joint=False),
)
