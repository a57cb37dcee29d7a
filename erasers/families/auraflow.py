"""AuraFlow: the tokens of Pile-T5."""

from __future__ import annotations

from ..layers import AURA
from ..sites import Encoder, Family, TextKeys
from ..verdicts import EMBEDDED

FAMILY = Family(
    name="auraflow",
    title="AuraFlow",
    stream="pile_t5xl",
    width=2048,
    blocks=36,
    pixels=1024,
    proven="facts and names of weights at full size; edits and adapters on a reduced model of the host's own class",
    sites=r"^cond_seq_linear\.weight$",
    prediction=("flow",),
    encoders=(Encoder("pile_t5xl", 2048, least=256, padding_read=False),),
    lora=("transformer.context_embedder",),
    hosts=("AuraFlow",),
    layers=AURA,
    can=EMBEDDED,
    text_keys=TextKeys(joint=True, before=8, marked=False),
)
