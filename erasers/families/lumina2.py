"""Lumina 2: the tokens of Gemma 2."""

from __future__ import annotations

from ..layers import REFINED
from ..sites import Encoder, Family, TextKeys
from ..verdicts import NORMED

FAMILY = Family(
    name="lumina2",
    title="Lumina 2",
    stream="gemma2_2b",
    width=2304,
    blocks=26,
    pixels=1024,
    proven="facts and names of weights at full size; edits and adapters on a reduced model of the host's own class",
    sites=r"^cap_embedder\.1\.weight$",
    mark=r"^context_refiner\.",
    prediction=("flow",),
    encoders=(Encoder("gemma2_2b", 2304, causal=True, start=True, end=False),),
    lora=("transformer.cap_embedder.1", "lycoris_cap_embedder_1"),
    hosts=("Lumina2",),
    layers=REFINED,
    can=NORMED,
    text_keys=TextKeys(joint=True),
)
