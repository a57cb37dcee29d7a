"""Which layers of a denoiser a recipe trains, by the names that the literature uses.

Linear and convolution layers count; their biases, norms and embeddings stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from torch import nn

from ..errors import FamilyError
from ..model import Model
from ..sites import Family

CROSS, KEYS_VALUES, NOT_CROSS, SELF, SELF_AND_QUERY = "cross", "cross-kv", "not-cross", "self", "self+q"
BLOCKS, FEED_FORWARD, TEXT_STREAM, ALL = "blocks", "ff", "text stream", "all"
PATTERNS = {
    CROSS: r"\.attn2\.",
    KEYS_VALUES: r"\.attn2\.to_[kv]$",
    NOT_CROSS: r"^(?!.*\.attn2\.)(?!time_embedding|class_embedding|add_embedding|conv_out)",
    SELF: r"\.attn1\.",
    SELF_AND_QUERY: r"\.attn1\.|\.attn2\.to_q$",
    BLOCKS: r"attentions\.\d+\.",
    FEED_FORWARD: r"\.ff\.net\.",
    TEXT_STREAM: r"\.attn2\.to_[kv]$",
    ALL: r"",
}
"""Patterns over the names of modules in a UNet: cross-attention, its keys and values, everything but it (and but the
time embedding and the output head), self-attention, that and the cross-attention's queries, transformer blocks with
their projections, feed-forward layers, the layers that only text passes, everything. Other kinds of models have their
own (layers.py)."""
TEXT_ALL, TEXT_FEW = "all", "mlp + last attention"
TEXT_PATTERNS = {
    TEXT_ALL: r"\.encoder\.layers\.",
    TEXT_FEW: r"\.encoder\.layers\.(?:.*\.mlp\.fc[12]$|{last}\.self_attn\.)",
}


@runtime_checkable
class Linear(Protocol):
    """A linear map of features. What hosts put in its place for quantised weights is no `nn.Linear`."""

    in_features: int
    out_features: int


def denoiser_layers(model: Model, where: str, family: Family) -> dict[str, nn.Module]:
    """The layers of a family's denoiser that `where`, a key of `PATTERNS`, selects, by name.

    Raises:
        FamilyError: there are none.
    """
    return _layers(model.modules({**PATTERNS, **family.layers}[where]), where)


def text_layers(model: Model, where: str) -> dict[str, nn.Module]:
    """The text encoder's layers that `where`, a key of `TEXT_PATTERNS`, selects, as `stream.name`.

    Raises:
        FamilyError: there are none, or the model has more than one text encoder.
    """
    tower = model.tower()
    modules = dict(tower.module.named_modules())
    depth = max((int(found[1]) for name in modules if (found := re.search(r"\.layers\.(\d+)\.", name))), default=0)
    pattern = TEXT_PATTERNS[where].replace("{last}", str(depth))
    return _layers({f"{tower.stream}.{name}": m for name, m in modules.items() if re.search(pattern, name)}, where)


def _layers(modules: Mapping[str, nn.Module], where: str) -> dict[str, nn.Module]:
    layers = (Linear, nn.Conv2d)
    # By name, since hosts list them in different orders, and what is drawn for them goes with the order.
    found: dict[str, nn.Module] = {name: own for name, own in sorted(modules.items()) if isinstance(own, layers)}
    if not found:
        raise FamilyError(f"This model has no layers of the kind '{where}' to train.", "Choose other layers.")
    return found
