"""Chroma: the tokens of T5 alone."""

from __future__ import annotations

from ..layers import TWO_STREAMS
from ..sites import Encoder, Family, TextKeys
from ..verdicts import EMBEDDED

FAMILY = Family(
    name="chroma",
    title="Chroma",
    stream="t5xxl",
    width=4096,
    blocks=57,
    pixels=1024,
    proven="facts and names of weights at full size; edits and adapters on a reduced model of the host's own class",
    sites=r"^txt_in\.weight$",
    mark=r"^distilled_guidance_layer\.",
    prediction=("flow",),
    encoders=(Encoder("t5xxl", 4096),),
    lora=("transformer.context_embedder", "lycoris_context_embedder", "context_embedder"),
    hosts=("Chroma", "ChromaRadiance"),
    layers=TWO_STREAMS,
    can=EMBEDDED,
    text_keys=TextKeys(joint=True),
)
