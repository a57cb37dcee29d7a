"""Boogu: the tokens of Qwen 3 VL 8B, the prompt in a chat template; the empty prompt has another."""

from __future__ import annotations

from ..layers import BOOGU
from ..sites import Encoder, Family, TextKeys
from ..verdicts import NORMED

FAMILY = Family(
    name="boogu",
    title="Boogu",
    stream="qwen3vl_8b",
    width=4096,
    blocks=40,
    pixels=1024,
    proven="facts and names of weights at full size; edits and adapters on a reduced model of the host's own class",
    sites=r"^time_caption_embed\.caption_embedder\.1\.weight$",
    mark=r"^double_stream_layers\.",
    prediction=("flow",),
    encoders=(Encoder("qwen3vl_8b", 4096, causal=True, end=False, wrapped=True),),
    lora=("lora_unet_time_caption_embed_caption_embedder_1",),
    hosts=("Boogu",),
    layers=BOOGU,
    can=NORMED,
    text_keys=TextKeys(joint=True, marked=False),
)
