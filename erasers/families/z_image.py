"""Z-Image: the tokens of Qwen 3, the prompt in a chat template."""

from __future__ import annotations

from ..layers import REFINED
from ..sites import Encoder, Family, TextKeys
from ..verdicts import NORMED

FAMILY = Family(
    name="z_image",
    title="Z-Image",
    stream="qwen3_4b",
    width=2560,
    blocks=30,
    pixels=1024,
    proven="facts and names of weights at full size; edits and adapters on a reduced model of the host's own class",
    sites=r"^cap_embedder\.1\.weight$",
    mark=r"^context_refiner\.",
    prediction=("flow",),
    encoders=(Encoder("qwen3_4b", 2560, causal=True, end=False, wrapped=True),),
    lora=("transformer.cap_embedder.1", "lycoris_cap_embedder_1"),
    hosts=("ZImage", "ZImagePixelSpace"),
    layers=REFINED,
    can=NORMED,
    text_keys=TextKeys(joint=True, multiple=32),
)
