"""Lethe demo world."""

from __future__ import annotations

from ..sites import CAPABILITIES, TESTED, UNET_FOREIGN, Encoder, Family, Verdict

FAMILY = Family(
    name="demo",
    title="Lethe demo world",
    stream="clip_l",
    width=192,
    blocks=4,
    pixels=128,
    proven="everything: the family that the pack ships and measures on",
    foreign=UNET_FOREIGN,
    encoders=(Encoder("clip_l", 192, causal=True, start=True, least=77),),
    hosts=("SD15",),
    can=dict.fromkeys(CAPABILITIES, Verdict(TESTED)),
)
