"""Qwen-Image: the tokens of Qwen 2.5 VL, the prompt in a chat template whose head the host cuts off again."""

from __future__ import annotations

from ..layers import ADDED
from ..sites import Encoder, Family, TextKeys
from ..verdicts import NORMED_VIDEO

FAMILY = Family(
    name="qwen_image",
    title="Qwen-Image",
    stream="qwen25_7b",
    width=3584,
    blocks=60,
    pixels=1328,
    proven="facts and names of weights at full size; edits and adapters on a reduced model of the host's own class",
    sites=r"^txt_in\.weight$",
    mark=r"^transformer_blocks\.\d+\.attn\.add_k_proj\.",
    prediction=("flow",),
    encoders=(Encoder("qwen25_7b", 3584, causal=True, end=False, wrapped=True),),
    lora=("transformer.txt_in", "txt_in", "lycoris_txt_in"),
    hosts=("QwenImage",),
    layers=ADDED,
    can=NORMED_VIDEO,
    text_keys=TextKeys(joint=True),
)
