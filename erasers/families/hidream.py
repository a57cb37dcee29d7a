"""HiDream I1: T5, every layer of Llama 3 through a projection of its own, and two pooled CLIP encoders."""

from __future__ import annotations

from ..layers import MIXTURE
from ..sites import CLIP_G, CLIP_L, WORDS, Encoder, Family, Further
from ..verdicts import BEHIND, EMBEDDED

_LAST = 31
_FROM_LAST = r"(?:3[1-9]|[4-9]\d)"
"""Blocks behind those of all layers read the last one."""
_NOT_T5 = r"(?=\ncaption_projection\.)"
"""Another projection on the next line of a list of names: T5's is the last."""

FAMILY = Family(
    name="hidream",
    title="HiDream I1",
    stream="t5xxl",
    width=4096,
    blocks=48,
    pixels=1024,
    proven="facts and names of weights at full size; edits and adapters on a reduced model of the host's own class",
    sites=r"^caption_projection\.\d+\.linear\.weight$(?!\ncaption_projection\.)",
    mark=r"^double_stream_blocks\.",
    pooled_stream="clip_l+clip_g.pooled",
    pooled_width=2048,
    pooled_site=r"^p_embedder\.pooled_embedder\.linear_1\.weight$",
    prediction=("flow",),
    encoders=(
        Encoder("t5xxl", 4096, least=128),
        Encoder("llama", 4096, causal=True, start=True, end=False, least=128),
        CLIP_L,
        CLIP_G,
    ),
    lora=("transformer.caption_projection.48.linear", "lycoris_caption_projection_48_linear"),
    hosts=("HiDream",),
    layers=MIXTURE,
    can={**EMBEDDED, WORDS: BEHIND},
    further=tuple(
        Further(
            f"llama.{layer}",
            "llama",
            4096,
            rf"^caption_projection\.{layer if layer < _LAST else _FROM_LAST}\.linear\.weight${_NOT_T5}",
            given="conditioning_llama3",
            taken="encoder_hidden_states_llama3",
            layer=layer,
        )
        for layer in range(_LAST + 1)
    ),
)
