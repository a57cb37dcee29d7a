"""HiDream I1: T5, every layer of Llama 3 through a projection of its own, and two pooled CLIP encoders."""

from __future__ import annotations

from ..layers import MIXTURE
from ..sites import CLIP_G, CLIP_L, Encoder, Family
from ..verdicts import unedited

FAMILY = Family(
    name="hidream",
    title="HiDream I1",
    stream="t5xxl",
    width=4096,
    blocks=48,
    pixels=1024,
    proven="facts and names of weights at full size; adapters on a reduced model of the host's own class",
    sites=r"^caption_projection\.\d+\.linear\.weight$",
    mark=r"^double_stream_blocks\.",
    pooled_stream="clip_l+clip_g.pooled",
    pooled_width=2048,
    pooled_site=r"^p_embedder\.pooled_embedder\.linear_1\.weight$",
    prediction=("flow",),
    encoders=(
        Encoder("t5xxl", 4096, least=128, padding_read=False),
        Encoder("llama", 4096, causal=True, start=True, end=False, least=128),
        CLIP_L,
        CLIP_G,
    ),
    lora=("transformer.caption_projection.0.linear", "lycoris_caption_projection_0_linear"),
    hosts=("HiDream",),
    layers=MIXTURE,
    can=unedited(
        "every layer of Llama enters by a weight of its own, beside T5, and no edit of that many is made yet."
    ),
)
