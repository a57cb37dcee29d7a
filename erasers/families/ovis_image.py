"""Ovis-Image: the tokens of Qwen 3 in a chat template whose head the host cuts off again, on Flux's blocks."""

from __future__ import annotations

from ..layers import TWO_STREAMS
from ..sites import Encoder, Family, TextKeys
from ..verdicts import NORMED

FAMILY = Family(
    name="ovis_image",
    title="Ovis-Image",
    stream="qwen3_2b",
    width=2048,
    blocks=33,
    pixels=1024,
    proven="facts and names of weights at full size; edits and adapters on a reduced model of the host's own class",
    sites=r"^txt_in\.weight$",
    mark=r"^double_blocks\.\d+\.txt_mlp\.gate_proj\.",
    prediction=("flow",),
    encoders=(Encoder("qwen3_2b", 2048, causal=True, end=False, least=284, wrapped=True),),
    lora=("transformer.context_embedder", "lycoris_context_embedder", "context_embedder"),
    hosts=("FluxSchnell",),
    layers=TWO_STREAMS,
    can=NORMED,
    text_keys=TextKeys(joint=True),
)
