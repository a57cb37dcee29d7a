"""Receler's erasers: small networks behind cross-attention, by the attention they stand in.

    down_blocks.0.attentions.1.down.weight  [r, c]      .down.bias [r]
    down_blocks.0.attentions.1.up.weight    [c, r]      .up.bias   [c]

The program keeps them as a dictionary of dictionaries; joined by dots these are the names. A UNet that carries them
has them under `<attention>.transformer_blocks.0.attn2.adapter`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from torch import Tensor

from ...errors import EraserFileError, FamilyError
from ...result import Bottleneck
from ..base import ADAPTERS, Base
from ..layout import Parts, refuse_unknown

_NAME = re.compile(
    r"(?:unet\.)?(?P<place>(?:down_blocks|up_blocks|mid_block)(?:\.\d+)?\.attentions\.\d+)"
    r"(?:\.transformer_blocks\.(?P<block>\d+)\.attn2\.adapter)?\.(?P<way>down|up)\.(?P<kind>weight|bias)$"
)
_TENSORS = {
    ("down", "weight"): "down",
    ("down", "bias"): "down_bias",
    ("up", "weight"): "up",
    ("up", "bias"): "up_bias",
}


class Receler:
    """Fulfils `layout.Layout`."""

    name = "Receler erasers"
    about = "Receler's networks behind cross-attention."

    def recognise(self, keys: Collection[str]) -> bool:
        return any(_NAME.match(key) for key in keys)

    def read(self, tensors: Mapping[str, Tensor], base: Base) -> Parts:
        found: dict[str, dict[str, Tensor]] = {}
        unknown = []
        for key in tensors:
            match = _NAME.match(key)
            if match is None:
                unknown.append(key)
                continue
            layer = f"{match['place']}.transformer_blocks.{match['block'] or 0}.attn2"
            own = found.setdefault(layer, {})
            name = _TENSORS[match["way"], match["kind"]]
            if name in own:
                raise EraserFileError(f"it names a part of '{layer}' twice, in '{key}' too", "Ask for another file.")
            own[name] = tensors[key].float()
        refuse_unknown(unknown, self.name)
        return Parts(modules={layer: _bottleneck(layer, own, base) for layer, own in found.items()})


def _bottleneck(layer: str, own: Mapping[str, Tensor], base: Base) -> Bottleneck:
    missing = sorted(set(_TENSORS.values()) - set(own))
    if missing:
        raise EraserFileError(f"'{layer}' lacks its '{missing[0]}'", "It may be cut short; copy it again.")
    width = base.shape((ADAPTERS, f"{layer}.to_out.0.weight"))[0]
    if own["up_bias"].shape != (width,):
        raise FamilyError(
            f"The eraser behind '{layer}' is {tuple(own['up_bias'].shape)} wide, the model's attention {width}.",
            "Connect the model that the file was made for.",
        )
    return Bottleneck(**own)


LAYOUT = Receler()
