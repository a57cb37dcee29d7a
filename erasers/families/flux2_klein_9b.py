"""Flux 2 Klein 9B: three layers of one language model beside each other."""

from __future__ import annotations

from ..layers import TWO_STREAMS
from ..sites import Encoder, Family, TextKeys
from ..verdicts import EMBEDDED

FAMILY = Family(
    name="flux2_klein_9b",
    title="Flux 2 Klein 9B",
    stream="qwen3_8b",
    width=12288,
    blocks=32,
    pixels=1024,
    proven="facts and names of weights at full size; edits and adapters on a reduced model of the host's own class",
    sites=r"^txt_in\.weight$",
    mark=r"^double_stream_modulation_txt\.",
    prediction=("flow",),
    encoders=(Encoder("qwen3_8b", 12288, causal=True, end=False, least=512, wrapped=True),),
    lora=("transformer.context_embedder", "lycoris_context_embedder", "context_embedder"),
    hosts=("Flux2",),
    layers=TWO_STREAMS,
    can=EMBEDDED,
    text_keys=TextKeys(joint=True, zeros=True),
)
