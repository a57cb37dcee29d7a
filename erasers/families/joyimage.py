"""JoyImage: the tokens of Qwen 3 VL 8B, the prompt in a chat template whose head the host cuts off again."""

from __future__ import annotations

from ..layers import JOY
from ..sites import Encoder, Family, TextKeys
from ..verdicts import EMBEDDED

FAMILY = Family(
    name="joyimage",
    title="JoyImage",
    stream="qwen3vl_8b",
    width=4096,
    blocks=20,
    pixels=1024,
    proven="facts and names of weights at full size; edits and adapters on a reduced model of the host's own class",
    sites=r"^condition_embedder\.text_embedder\.linear_1\.weight$",
    mark=r"^double_blocks\.\d+\.attn\.txt_attn_qkv\.",
    prediction=("flow",),
    encoders=(Encoder("qwen3vl_8b", 4096, causal=True, end=False, wrapped=True),),
    lora=("lora_unet_condition_embedder_text_embedder_linear_1",),
    hosts=("JoyImage",),
    layers=JOY,
    can=EMBEDDED,
    text_keys=TextKeys(joint=True, behind=True, always=True, marked=False),
)
