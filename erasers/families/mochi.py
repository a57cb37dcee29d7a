"""Mochi 1: the tokens of T5, by an embedder and by a pooling of their own."""

from __future__ import annotations

from ..layers import ASYMMETRIC
from ..sites import Encoder, Family, TextKeys
from ..verdicts import VIDEO

FAMILY = Family(
    name="mochi",
    title="Mochi 1",
    stream="t5xxl",
    width=4096,
    blocks=48,
    pixels=848,
    proven="facts and names of weights at full size; edits and adapters on a reduced model of the host's own class",
    sites=r"^(?:t5_y_embedder\.to_(?:kv|q)|t5_yproj)\.weight$",
    prediction=("flow",),
    encoders=(Encoder("t5xxl", 4096, least=256, padding_read=False),),
    lora=("t5_y_embedder.to_kv",),
    hosts=("GenmoMochi",),
    layers=ASYMMETRIC,
    can=VIDEO,
    text_keys=TextKeys(joint=True, behind=True, always=True, marked=False),
)
