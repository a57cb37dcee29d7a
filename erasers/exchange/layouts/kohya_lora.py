"""LoRA files in kohya's names; SPM, LECO and Concept Sliders publish theirs in them.

lora_unet_<layer in diffusers' or the original names, "_" for ".">.lora_up.weight
lora_te_<layer>.lora_down.weight, and lora_te1_, lora_te2_ where there are two text encoders
"""

from __future__ import annotations

from collections.abc import Collection

from ..base import TEXT, Base, Owner
from ..lora import LoraLayout, text_layer

_UNET, _TEXT = "lora_unet_", "lora_te"


def _spell(base: Base, owner: Owner) -> str | None:
    if owner[0] == TEXT:
        found = text_layer(base, owner)
        if found is None:
            return None
        number = "" if len(base.streams) == 1 else str(found[0] + 1)
        return f"{_TEXT}{number}_{_flat(found[1])}"
    return f"{_UNET}{_flat(owner[1].removesuffix('.weight'))}" if owner[1].endswith(".weight") else None


def _spellings(base: Base, owner: Owner) -> Collection[str]:
    spelled = _spell(base, owner)
    if spelled is None:
        return ()
    part, name = owner
    if part != TEXT:
        native = base.native.get(name, name).removesuffix(".weight")
        return {spelled, f"{_UNET}{_flat(native)}"}
    found = text_layer(base, owner)
    assert found is not None
    return {spelled, f"{_TEXT}{found[0] + 1}_{_flat(found[1])}"}


def _flat(layer: str) -> str:
    return layer.replace(".", "_")


LAYOUT = LoraLayout(
    name="kohya LoRA",
    about="What kohya's trainer, SPM, LECO and Concept Sliders write and most programs load.",
    spellings=_spellings,
    spell=_spell,
    prefixes=(_UNET, f"{_TEXT}_", f"{_TEXT}1_", f"{_TEXT}2_"),
)
