"""LoRA files in the names of diffusers and peft.

    unet.<layer>.lora_B.weight, .lora_A.weight                      [o, r], [r, d]
    text_encoder.<layer>.lora_linear_layer.up.weight, .down.weight  of the second encoder under text_encoder_2.

Older ones name attention's layers by their processor, `unet.<attention>.processor.to_k_lora.up.weight`.
"""

from __future__ import annotations

from collections.abc import Collection

from ..base import TEXT, Base, Owner
from ..lora import LoraLayout, text_layer

_OTHERS = ("diffusion_model.", "text_encoders.", "lora_unet_", "lora_te", "lycoris_")


def _spell(base: Base, owner: Owner) -> str | None:
    if owner[0] == TEXT:
        found = text_layer(base, owner)
        return None if found is None else f"text_encoder{f'_{found[0] + 1}' if found[0] else ''}.{found[1]}"
    return f"unet.{owner[1].removesuffix('.weight')}" if owner[1].endswith(".weight") else None


def _spellings(base: Base, owner: Owner) -> Collection[str]:
    spelled = _spell(base, owner)
    if spelled is None or owner[0] == TEXT:
        return () if spelled is None else (spelled,)
    layer = owner[1].removesuffix(".weight")
    spoken = {layer, layer.replace(".to_", ".processor.to_").replace(".to_out.0", ".to_out")}
    return {f"{prefix}{own}" for own in spoken for prefix in ("unet.", "", "base_model.model.")}


LAYOUT = LoraLayout(
    name="diffusers LoRA",
    about="What diffusers' pipelines and peft write and load.",
    spellings=_spellings,
    spell=_spell,
    others=_OTHERS,
    suffixes=(".lora_B.weight", ".lora_A.weight"),
    text_suffixes=(".lora_linear_layer.up.weight", ".lora_linear_layer.down.weight"),
    alpha=False,
)
