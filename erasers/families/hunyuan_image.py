"""HunyuanImage 2.1: the tokens of Qwen 2.5 VL, the prompt in a chat template whose head the host cuts off again.

Words in quotation marks enter a second time, by the letters of ByT5 behind the tokens; no edit reaches those.
"""

from __future__ import annotations

from ..layers import TWO_STREAMS
from ..sites import Encoder, Family, TextKeys
from ..verdicts import EMBEDDED

FAMILY = Family(
    name="hunyuan_image",
    title="HunyuanImage 2.1",
    stream="qwen25_7b",
    width=3584,
    blocks=60,
    pixels=2048,
    proven="facts and names of weights at full size; edits and adapters on a reduced model of the host's own class",
    sites=r"^txt_in\.(?:input_embedder|c_embedder\.in_layer)\.weight$",
    foreign=r"^(?:cond_type_embedding|vision_in)\.",
    prediction=("flow",),
    encoders=(Encoder("qwen25_7b", 3584, causal=True, end=False, wrapped=True),),
    lora=("lora_unet_txt_in_input_embedder",),
    hosts=("HunyuanImage21", "HunyuanImage21Refiner"),
    layers=TWO_STREAMS,
    can=EMBEDDED,
    text_keys=TextKeys(joint=True),
)
