"""Flux 2: three layers of one language model beside each other."""

from __future__ import annotations

from ..layers import TWO_STREAMS
from ..sites import Encoder, Family, TextKeys
from ..verdicts import EMBEDDED

FAMILY = Family(
    name="flux2",
    title="Flux 2",
    stream="mistral3_24b",
    width=15360,
    blocks=56,
    pixels=1024,
    proven="facts and names of weights at full size; edits and adapters on a reduced model of the host's own class",
    sites=r"^txt_in\.weight$",
    mark=r"^double_stream_modulation_txt\.",
    prediction=("flow",),
    encoders=(Encoder("mistral3_24b", 15360, causal=True, start=True, end=False, wrapped=True),),
    lora=("transformer.context_embedder", "lycoris_context_embedder", "context_embedder"),
    hosts=("Flux2",),
    layers=TWO_STREAMS,
    can=EMBEDDED,
    text_keys=TextKeys(joint=True, zeros=True),
)
