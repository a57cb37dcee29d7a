"""Hunyuan Video 1.5: the tokens of Qwen 2.5 VL, the prompt in a chat template whose head the host cuts off again.

Words in quotation marks enter a second time, by the letters of ByT5 before the tokens; no edit reaches those.
"""

from __future__ import annotations

from ..layers import TWO_STREAMS
from ..sites import Encoder, Family, TextKeys
from ..verdicts import VIDEO

FAMILY = Family(
    name="hunyuan_video15",
    title="Hunyuan Video 1.5",
    stream="qwen25_7b",
    width=3584,
    blocks=54,
    pixels=848,
    proven="facts and names of weights at full size; edits and adapters on a reduced model of the host's own class",
    sites=r"^txt_in\.(?:input_embedder|c_embedder\.in_layer)\.weight$",
    mark=r"^cond_type_embedding\.",
    prediction=("flow",),
    encoders=(Encoder("qwen25_7b", 3584, causal=True, end=False, wrapped=True),),
    lora=("transformer.txt_in.input_embedder",),
    hosts=("HunyuanVideo15", "HunyuanVideo15_SR_Distilled"),
    layers=TWO_STREAMS,
    can=VIDEO,
    text_keys=TextKeys(joint=True),
)
