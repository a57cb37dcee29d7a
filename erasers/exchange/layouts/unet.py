"""Weights of a UNet under diffusers' names: all of them, or those that were changed.

ESD, UCE and SPEED publish only the changed ones (attn2.to_k and attn2.to_v, or more with their biases); RECE and MACE
whole UNets.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from torch import Tensor

from ..base import ADAPTERS, Base
from ..layout import Parts, refuse_unknown
from ..lora import is_lora
from ..whole import differences

_PREFIX = "unet."
_OWN = re.compile(
    r"(unet\.)?((down|up)_blocks\.\d+|mid_block|conv_(in|out|norm_out)|time_embedding|add_embedding)\..*(weight|bias)$"
)
_BOTTLENECK = re.compile(r"(attentions\.\d+|adapter)\.(down|up)\.(weight|bias)$")


class UNet:
    """Fulfils `layout.Layout`."""

    name = "UNet weights"
    about = "ESD, UCE, RECE, SPEED, MACE and others, as diffusers names them."

    def recognise(self, keys: Collection[str]) -> bool:
        own = any(_OWN.match(key) and not _BOTTLENECK.search(key) for key in keys)
        return own and not is_lora(keys)

    def read(self, tensors: Mapping[str, Tensor], base: Base) -> Parts:
        owners = {key: (ADAPTERS, key.removeprefix(_PREFIX)) for key in tensors}
        refuse_unknown([key for key, owner in owners.items() if owner not in base.shapes], self.name)
        return differences(owners, base, tensors)


LAYOUT = UNet()
