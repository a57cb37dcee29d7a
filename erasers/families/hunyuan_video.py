"""Hunyuan Video: the tokens of Llama 3, in a template whose head is cut off; CLIP enters by its pooled features."""

from __future__ import annotations

from ..layers import TWO_STREAMS
from ..sites import CLIP_L, Encoder, Family, TextKeys
from ..verdicts import VIDEO

FAMILY = Family(
    name="hunyuan_video",
    title="Hunyuan Video",
    stream="llama",
    width=4096,
    blocks=60,
    pixels=848,
    proven="facts and names of weights at full size; edits and adapters on a reduced model of the host's own class",
    sites=r"^txt_in\.(?:input_embedder|c_embedder\.in_layer)\.weight$",
    pooled_stream="clip_l.pooled",
    pooled_width=768,
    pooled_site=r"^vector_in\.in_layer\.weight$",
    prediction=("flow",),
    encoders=(Encoder("llama", 4096, causal=True, start=True, end=False, wrapped=True), CLIP_L),
    lora=("transformer.txt_in.input_embedder",),
    hosts=("HunyuanVideo", "HunyuanVideoI2V", "HunyuanVideoSkyreelsI2V"),
    layers=TWO_STREAMS,
    can=VIDEO,
    text_keys=TextKeys(joint=True),
)
