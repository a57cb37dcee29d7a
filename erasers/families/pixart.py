"""PixArt alpha and sigma: the tokens of T5, through a caption projection."""

from __future__ import annotations

from ..layers import CAPTIONED
from ..sites import Encoder, Family
from ..verdicts import UNREACHED

FAMILY = Family(
    name="pixart",
    title="PixArt alpha and sigma",
    stream="t5xxl",
    width=4096,
    blocks=28,
    pixels=1024,
    proven="facts and names of weights at full size; edits and adapters on a reduced model of the host's own class",
    sites=r"^y_embedder\.y_proj\.fc1\.weight$",
    encoders=(Encoder("t5xxl", 4096),),
    lora=("transformer.caption_projection.linear_1", "base_model.model.caption_projection.linear_1"),
    hosts=("PixArtAlpha", "PixArtSigma"),
    layers=CAPTIONED,
    can=UNREACHED,
)
