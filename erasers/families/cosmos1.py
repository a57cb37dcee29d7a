"""Cosmos 1: the tokens of the first T5."""

from __future__ import annotations

from ..layers import COSMOS1
from ..sites import Encoder, Family, TextKeys
from ..verdicts import VIDEO

FAMILY = Family(
    name="cosmos1",
    title="Cosmos 1",
    stream="t5xxl",
    width=1024,
    blocks=28,
    pixels=1280,
    proven="facts and names of weights at full size; edits and adapters on a reduced model of the host's own class",
    sites=r"^blocks\.block\d+\.blocks\.1\.block\.attn\.to_(?P<role>[kv])\.0\.weight$",
    prediction=("edm",),
    encoders=(Encoder("t5xxl", 1024, least=512, padding_read=False),),
    lora=("lora_unet_blocks_block0_blocks_1_block_attn_to_k_0",),
    hosts=("CosmosT2V", "CosmosI2V"),
    layers=COSMOS1,
    can=VIDEO,
    text_keys=TextKeys(joint=False),
)
