"""LoRA files: layouts that differ only in how they spell the names of layers and factors.

A change of a weight is `alpha / r * up @ down`; a file without alpha means alpha = r. What is no product of thin
factors stands whole in some layouts, under `.diff` and `.diff_b`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import EraserFileError, SettingError
from ..result import WeightEdit
from .base import TEXT, Base, Owner
from .factors import Change, Factors, factorise
from .layout import Parts, Written, refuse_unknown

UP, DOWN, ALPHA, DIFF, DIFF_BIAS = "up", "down", "alpha", "diff", "diff_b"
_SUFFIXES = {
    ".lora_up.weight": UP,
    ".lora_down.weight": DOWN,
    ".lora_B.weight": UP,
    ".lora_A.weight": DOWN,
    ".lora_B.default.weight": UP,
    ".lora_A.default.weight": DOWN,
    ".lora_linear_layer.up.weight": UP,
    ".lora_linear_layer.down.weight": DOWN,
    ".lora.up.weight": UP,
    ".lora.down.weight": DOWN,
    "_lora.up.weight": UP,
    "_lora.down.weight": DOWN,
    ".alpha": ALPHA,
    ".diff": DIFF,
    ".diff_b": DIFF_BIAS,
}
_TEXT_LINEAR = re.compile(r"text_model\.encoder\.layers\.\d+\.(mlp\.fc[12]|self_attn\.(q|k|v|out)_proj)\.weight$")


def is_lora(keys: Collection[str]) -> bool:
    """Whether any tensor is a factor."""
    return any(split(key)[1] in (UP, DOWN) for key in keys)


def split(key: str) -> tuple[str, str]:
    """A tensor's layer and what it is there; "" for what no LoRA of these layouts holds."""
    for suffix, kind in _SUFFIXES.items():
        if key.endswith(suffix):
            return key.removesuffix(suffix), kind
    return key, ""


@dataclass(frozen=True)
class LoraLayout:
    """A spelling of LoRA files; fulfils `layout.WritableLayout`.

    Attributes:
        name, about: as `Layout` says.
        prefixes: what the names of its tensors begin with; empty for the layout that takes all other LoRAs.
        others: prefixes of other layouts, which are then not its own.
        spellings: every spelling of a layer that it reads, for each weight of a model.
        spell: the one that it writes; None where it has none.
        suffixes, text_suffixes: of the up and the down factor, as it writes them, for the denoiser and text encoders.
        alpha: whether it writes alpha.
        whole: whether it holds changes as they are, not only as factors.
    """

    name: str
    about: str
    spellings: Callable[[Base, Owner], Collection[str]]
    spell: Callable[[Base, Owner], str | None]
    prefixes: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    suffixes: tuple[str, str] = (".lora_up.weight", ".lora_down.weight")
    text_suffixes: tuple[str, str] = (".lora_up.weight", ".lora_down.weight")
    alpha: bool = True
    whole: bool = False

    def recognise(self, keys: Collection[str]) -> bool:
        if self.prefixes:
            own = [key for key in keys if key.startswith(self.prefixes)]
            return is_lora(own) or any(split(key)[1] in (DIFF, DIFF_BIAS) for key in own)
        return is_lora(keys) and not any(key.startswith(self.others) for key in keys)

    def read(self, tensors: Mapping[str, Tensor], base: Base) -> Parts:
        known = {name: owner for owner in base.shapes for name in self.spellings(base, owner)}
        layers: dict[Owner, dict[str, str]] = {}
        unknown = []
        for key in tensors:
            layer, kind = split(key)
            owner = known.get(layer)
            if owner is None or not kind:
                unknown.append(key)
                continue
            if kind in layers.setdefault(owner, {}):
                raise EraserFileError(f"it names '{owner[1]}' twice, in '{key}' too", "Ask its author for another.")
            layers[owner][kind] = key
        refuse_unknown(unknown, self.name)
        edits: dict[Owner, WeightEdit] = {}
        for owner, found in layers.items():
            edits |= _read_layer(owner, found, tensors, base)
        return Parts(edits)

    def write(self, changes: Mapping[Owner, Change], base: Base, rank: int = 0) -> Written:
        layers = {owner: self._layer_name(base, owner, change) for owner, change in changes.items()}
        factors = {owner: self._factors(change, rank) for owner, change in changes.items()}
        ranks = [len(found.down) for found in factors.values() if found is not None]
        # One alpha for all: diffusers mistakes those of files in which it differs from layer to layer.
        alpha = max(ranks, default=1) if self.alpha else None
        tensors: dict[str, Tensor] = {}
        for owner, found in factors.items():
            own = (
                self._whole(owner, changes[owner]) if found is None else self._thin(owner, changes[owner], found, alpha)
            )
            tensors |= {f"{layers[owner]}{suffix}": tensor.clone().contiguous() for suffix, tensor in own.items()}
        return Written(tensors, min((found.kept for found in factors.values() if found is not None), default=1.0))

    def _layer_name(self, base: Base, owner: Owner, change: Change) -> str:
        layer = self.spell(base, owner)
        if layer is None or (len(change.shape) < 2 and not self.whole):
            raise SettingError(
                f"The layout '{self.name}' has no name for the change of '{owner[1]}'.",
                "Choose the layout 'ComfyUI LoRA' or 'full model'.",
            )
        return layer

    def _factors(self, change: Change, rank: int) -> Factors | None:
        """A change in factors; None where it stands whole."""
        if len(change.shape) < 2:
            return None
        if change.up is not None and change.down is not None and (not rank or len(change.down) <= rank):
            return Factors(change.up, change.down, 1.0)
        found = factorise(change.matrix(), rank)
        rows, columns = len(found.up), found.down.shape[1]
        is_larger = len(found.down) * (rows + columns) >= rows * columns
        return None if self.whole and not rank and is_larger else found

    def _thin(self, owner: Owner, change: Change, found: Factors, alpha: int | None) -> dict[str, Tensor]:
        """Factors by suffix."""
        own = len(found.down)
        up, down = found.up * (own / alpha if alpha else 1.0), found.down
        if len(change.shape) > 2:
            up = up.reshape(*up.shape, *[1] * (len(change.shape) - 2))
            down = down.reshape(own, *change.shape[1:])
        suffixes = self.text_suffixes if owner[0] == TEXT else self.suffixes
        tensors = dict(zip(suffixes, (up, down), strict=True))
        return tensors | ({".alpha": torch.tensor(float(alpha))} if alpha else {})

    def _whole(self, owner: Owner, change: Change) -> dict[str, Tensor]:
        suffix = ".diff_b" if owner[1].endswith(".bias") else ".diff"
        return {suffix: change.matrix().reshape(change.shape)}


def text_layer(base: Base, owner: Owner) -> tuple[int, str] | None:
    """A text encoder's number and a layer's name in it, for weights that LoRAs of every program may change."""
    stream, _, name = owner[1].partition(".")
    if owner[0] != TEXT or stream not in base.streams or not _TEXT_LINEAR.match(name):
        return None
    return base.streams.index(stream), name.removesuffix(".weight")


def _read_layer(
    owner: Owner, found: Mapping[str, str], tensors: Mapping[str, Tensor], base: Base
) -> dict[Owner, WeightEdit]:
    part, name = owner
    edits: dict[Owner, WeightEdit] = {}
    if DIFF_BIAS in found:
        bias = part, f"{name.removesuffix('.weight')}.bias"
        edits[bias] = _whole(tensors[found[DIFF_BIAS]], base.shape(bias))
    shape = base.shape(owner)
    if DIFF in found:
        edits[owner] = _whole(tensors[found[DIFF]], shape)
    if not ({UP, DOWN, ALPHA} & set(found)):
        return edits
    if DIFF in found or not {UP, DOWN} <= set(found):
        raise EraserFileError(
            f"of '{name}' it holds {', '.join(sorted(found))}, which make no LoRA",
            "It may be cut short; copy it again.",
        )
    up, down = (tensors[found[kind]].float() for kind in (UP, DOWN))
    if up.ndim < 2 or down.ndim < 2 or not len(down) or math.prod(up.shape[1:]) != len(down):
        raise EraserFileError(
            f"the factors of '{name}' have shapes {tuple(up.shape)} and {tuple(down.shape)}, which do not fit together",
            "It may be damaged; copy it again.",
        )
    alpha = float(len(down))
    if ALPHA in found:
        given = tensors[found[ALPHA]]
        alpha = float(given) if given.numel() == 1 else math.nan
    if not math.isfinite(alpha):
        raise EraserFileError(f"the alpha of '{name}' is no number", "It may be damaged; copy it again.")
    edit = WeightEdit(down=down.flatten(1), up=up.flatten(1) * (alpha / len(down)))
    edit.check_shape(shape)
    return edits | {owner: edit}


def _whole(tensor: Tensor, shape: tuple[int, ...]) -> WeightEdit:
    tensor = tensor.float()
    edit = WeightEdit(dense=tensor.reshape(len(tensor), -1) if tensor.ndim and tensor.numel() else tensor)
    edit.check_shape(shape)
    return edit
