"""LongCat-Image: the tokens of Qwen 2.5 VL 7B, the prompt in a chat template that the host cuts off on both sides."""

from __future__ import annotations

from ..layers import TWO_STREAMS
from ..sites import Encoder, Family, TextKeys
from ..verdicts import EMBEDDED

FAMILY = Family(
    name="longcat_image",
    title="LongCat-Image",
    stream="qwen25_7b",
    width=3584,
    blocks=30,
    pixels=1024,
    proven="facts and names of weights at full size; edits and adapters on a reduced model of the host's own class",
    sites=r"^txt_in\.weight$",
    mark=r"^double_blocks\.",
    foreign=r"^(?:vector_in|txt_norm|distilled_guidance_layer)\.|^double_stream_modulation_txt\.",
    prediction=("flow",),
    encoders=(Encoder("qwen25_7b", 3584, causal=True, end=False, least=512, wrapped=True),),
    lora=("transformer.context_embedder", "lycoris_context_embedder", "context_embedder"),
    hosts=("LongCatImage",),
    layers=TWO_STREAMS,
    can=EMBEDDED,
    text_keys=TextKeys(joint=True),
)
