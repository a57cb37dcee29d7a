"""Flux 2 Klein 4B: three layers of one language model beside each other."""

from __future__ import annotations

from ..layers import TWO_STREAMS
from ..sites import Encoder, Family, TextKeys
from ..verdicts import EMBEDDED

FAMILY = Family(
    name="flux2_klein_4b",
    title="Flux 2 Klein 4B",
    stream="qwen3_4b",
    width=7680,
    blocks=25,
    pixels=1024,
    proven="facts and names of weights at full size; edits and adapters on a reduced model of the host's own class",
    sites=r"^txt_in\.weight$",
    mark=r"^double_stream_modulation_txt\.",
    prediction=("flow",),
    encoders=(Encoder("qwen3_4b", 7680, causal=True, end=False, least=512, wrapped=True),),
    lora=("transformer.context_embedder", "lycoris_context_embedder", "context_embedder"),
    hosts=("Flux2",),
    layers=TWO_STREAMS,
    can=EMBEDDED,
    text_keys=TextKeys(joint=True, zeros=True),
)
