"""Mage-Flow: the tokens of Qwen 3 VL 4B, the prompt in a chat template whose head the host cuts off again."""

from __future__ import annotations

from ..layers import ADDED
from ..sites import Encoder, Family, TextKeys
from ..verdicts import NORMED

FAMILY = Family(
    name="mage_flow",
    title="Mage-Flow",
    stream="qwen3vl_4b",
    width=2560,
    blocks=12,
    pixels=1024,
    proven="facts and names of weights at full size; edits and adapters on a reduced model of the host's own class",
    sites=r"^txt_in\.weight$",
    mark=r"^transformer_blocks\.\d+\.attn\.add_k_proj\.",
    prediction=("flow",),
    encoders=(Encoder("qwen3vl_4b", 2560, causal=True, end=False, wrapped=True),),
    lora=("transformer.txt_in", "txt_in", "lycoris_txt_in"),
    hosts=("MageFlow",),
    layers=ADDED,
    can=NORMED,
    text_keys=TextKeys(joint=True),
)
