"""OmniGen 2: the tokens of Qwen 2.5 VL 3B, the prompt in a chat template."""

from __future__ import annotations

from ..layers import OMNIGEN2
from ..sites import Encoder, Family, TextKeys
from ..verdicts import NORMED

FAMILY = Family(
    name="omnigen2",
    title="OmniGen 2",
    stream="qwen25_3b",
    width=2048,
    blocks=32,
    pixels=1024,
    proven="facts and names of weights at full size; edits and adapters on a reduced model of the host's own class",
    sites=r"^time_caption_embed\.caption_embedder\.1\.weight$",
    foreign=r"^double_stream_layers\.",
    prediction=("flow",),
    encoders=(Encoder("qwen25_3b", 2048, causal=True, end=False, wrapped=True),),
    lora=("time_caption_embed.caption_embedder.1",),
    hosts=("Omnigen2",),
    layers=OMNIGEN2,
    can=NORMED,
    text_keys=TextKeys(joint=True, marked=False),
)
