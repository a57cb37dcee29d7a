"""LoRA files in ComfyUI's own names, which its LoRA loaders take for models of every family.

diffusion_model.<layer in the original checkpoint>.lora_up.weight      [o, r]
text_encoders.<encoder>.transformer.<layer>.lora_down.weight           [r, d]
"""

from __future__ import annotations

from collections.abc import Collection

from ..base import TEXT, Base, Owner
from ..lora import LoraLayout

_UNET, _TEXT = "diffusion_model.", "text_encoders."


def _spell(base: Base, owner: Owner) -> str | None:
    part, name = owner
    if part == TEXT:
        stream, _, rest = name.partition(".")
        return _layer(f"{_TEXT}{stream}.transformer.{rest}")
    return _layer(f"{_UNET}{base.native[name]}") if name in base.native else None


def _layer(name: str) -> str | None:
    for suffix in (".weight", ".bias"):
        if name.endswith(suffix):
            return name.removesuffix(suffix)
    return None


def _spellings(base: Base, owner: Owner) -> Collection[str]:
    spelled = _spell(base, owner) if owner[1].endswith(".weight") else None
    return () if spelled is None else (spelled,)


LAYOUT = LoraLayout(
    name="ComfyUI LoRA",
    about="What ComfyUI trains and loads, for every model family.",
    spellings=_spellings,
    spell=_spell,
    prefixes=(_UNET, _TEXT),
    whole=True,
)
