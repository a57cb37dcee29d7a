"""Flux 1: the tokens of T5; CLIP enters by its pooled features."""

from __future__ import annotations

from ..layers import TWO_STREAMS
from ..sites import CLIP_L, Encoder, Family, TextKeys
from ..verdicts import EMBEDDED

FAMILY = Family(
    name="flux",
    title="Flux 1",
    stream="t5xxl",
    width=4096,
    blocks=57,
    pixels=1024,
    proven="facts and names of weights at full size; edits and adapters on a reduced model of the host's own class",
    sites=r"^txt_in\.weight$",
    mark=r"^vector_in\.in_layer\.weight$",
    foreign=r"^(?:distilled_guidance_layer|txt_norm)\.",
    pooled_stream="clip_l.pooled",
    pooled_width=768,
    pooled_site=r"^vector_in\.in_layer\.weight$",
    prediction=("flow",),
    encoders=(Encoder("t5xxl", 4096, least=256), CLIP_L),
    lora=("transformer.context_embedder", "lycoris_context_embedder", "context_embedder"),
    hosts=("Flux", "FluxInpaint", "FluxSchnell"),
    layers=TWO_STREAMS,
    can=EMBEDDED,
    text_keys=TextKeys(joint=True),
)
