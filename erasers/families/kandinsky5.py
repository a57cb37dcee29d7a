"""Kandinsky 5, images and video: the tokens of Qwen 2.5 VL in a chat template; CLIP enters by its pooled features."""

from __future__ import annotations

from ..layers import KANDINSKY
from ..sites import CLIP_L, Encoder, Family, TextKeys
from ..verdicts import VIDEO

FAMILY = Family(
    name="kandinsky5",
    title="Kandinsky 5",
    stream="qwen25_7b",
    width=3584,
    blocks=60,
    pixels=1024,
    proven="facts and names of weights at full size; edits and adapters on a reduced model of the host's own class",
    sites=r"^text_embeddings\.in_layer\.weight$",
    mark=r"^visual_transformer_blocks\.",
    pooled_stream="clip_l.pooled",
    pooled_width=768,
    pooled_site=r"^pooled_text_embeddings\.in_layer\.weight$",
    prediction=("flow",),
    encoders=(Encoder("qwen25_7b", 3584, causal=True, end=False, wrapped=True), CLIP_L),
    lora=("text_embeddings.in_layer", "transformer.text_embeddings.in_layer"),
    hosts=("Kandinsky5", "Kandinsky5Image"),
    layers=KANDINSKY,
    can=VIDEO,
    text_keys=TextKeys(joint=False, alone=True),
)
