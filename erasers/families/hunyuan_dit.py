"""HunyuanDiT: a Chinese BERT, and mT5 through a projection of its own."""

from __future__ import annotations

from ..layers import BERT
from ..sites import Encoder, Family
from ..verdicts import unedited

FAMILY = Family(
    name="hunyuan_dit",
    title="HunyuanDiT",
    stream="hydit_clip",
    width=1024,
    blocks=40,
    pixels=1024,
    proven="facts and names of weights at full size; adapters on a reduced model of the host's own class",
    sites=r"^blocks\.\d+\.attn2\.kv_proj\.weight$",
    mark=r"^mlp_t5\.0\.weight$",
    prediction=("v",),
    encoders=(Encoder("hydit_clip", 1024, start=True, least=77), Encoder("mt5xl", 2048, least=256, padding_read=False)),
    lora=("base_model.model.blocks.0.attn2.kv_proj",),
    hosts=("HunyuanDiT", "HunyuanDiT1"),
    layers=BERT,
    can=unedited(
        "the same weights read two text encoders, one of them through a projection, so one edit would leave the other."
    ),
)
