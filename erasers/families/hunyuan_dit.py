"""HunyuanDiT: a Chinese BERT, and mT5 through a projection of its own."""

from __future__ import annotations

from ..layers import BERT
from ..sites import NO, WEIGHTS, Encoder, Family, Further, Verdict
from ..verdicts import UNREACHED

FAMILY = Family(
    name="hunyuan_dit",
    title="HunyuanDiT",
    stream="hydit_clip",
    width=1024,
    blocks=40,
    pixels=1024,
    proven="facts and names of weights at full size; edits and adapters on a reduced model of the host's own class",
    sites=r"^blocks\.\d+\.attn2\.kv_proj\.weight$",
    mark=r"^mlp_t5\.0\.weight$",
    prediction=("v",),
    encoders=(Encoder("hydit_clip", 1024, start=True, least=77, padding_read=False), Encoder("mt5xl", 2048, least=256)),
    lora=("base_model.model.blocks.0.attn2.kv_proj",),
    hosts=("HunyuanDiT", "HunyuanDiT1"),
    layers=BERT,
    can={**UNREACHED, WEIGHTS: Verdict(NO, "the weights that read one text encoder read the other too: use a hook.")},
    further=(
        Further(
            "mt5xl",
            "mt5xl",
            2048,
            r"^(?:mlp_t5\.0|pooler\.[qkv]_proj)\.weight$",
            given="conditioning_mt5xl",
            taken="encoder_hidden_states_t5",
        ),
    ),
)
