"""Stable Diffusion 3 and 3.5: the tokens of both CLIPs, padded with zeros to the width of T5, then those of T5."""

from __future__ import annotations

from ..layers import JOINT
from ..sites import CLIP_G, CLIP_L, Encoder, Family, TextKeys
from ..verdicts import EMBEDDED

FAMILY = Family(
    name="sd3",
    title="Stable Diffusion 3 and 3.5",
    stream="clip_l+clip_g|t5xxl",
    width=4096,
    blocks=38,
    pixels=1024,
    proven="facts and names of weights at full size; edits and adapters on a reduced model of the host's own class",
    sites=r"^context_embedder\.weight$",
    mark=r"^joint_blocks\.",
    pooled_stream="clip_l+clip_g.pooled",
    pooled_width=2048,
    pooled_site=r"^y_embedder\.mlp\.0\.weight$",
    prediction=("flow",),
    encoders=(CLIP_L, CLIP_G, Encoder("t5xxl", 4096, least=77)),
    lora=("transformer.context_embedder", "lora_transformer_context_embedder"),
    hosts=("SD3",),
    layers=JOINT,
    can=EMBEDDED,
    text_keys=TextKeys(joint=True, marked=False),
)
