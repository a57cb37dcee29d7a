"""Ideogram 4: thirteen layers of Qwen 3 VL 8B beside each other."""

from __future__ import annotations

from ..layers import IDEOGRAM4
from ..sites import Encoder, Family, TextKeys
from ..verdicts import NORMED

FAMILY = Family(
    name="ideogram4",
    title="Ideogram 4",
    stream="qwen3vl_8b",
    width=53248,
    blocks=34,
    pixels=1024,
    proven="facts and names of weights at full size; edits and adapters on a reduced model of the host's own class",
    sites=r"^llm_cond_proj\.weight$",
    prediction=("flow",),
    encoders=(Encoder("qwen3vl_8b", 53248, causal=True, end=False, wrapped=True),),
    lora=("lora_unet_llm_cond_proj",),
    hosts=("Ideogram4",),
    layers=IDEOGRAM4,
    can=NORMED,
    text_keys=TextKeys(joint=True, marked=False, patch=1),
)
