"""A CLIP text encoder under transformers' names, as AdvUnlearn publishes it."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor

from ...errors import FamilyError
from ..base import TEXT, Base, Owner
from ..layout import Parts, refuse_unknown
from ..lora import is_lora
from ..whole import differences

_PREFIXES = ("text_encoder.", "transformer.")
_OWN = "text_model."
_UNUSED = ("text_model.embeddings.position_ids", "text_projection.weight", "logit_scale")
"""A buffer that counts from 0, and what only pooled features or pictures pass."""


class TextEncoder:
    """Fulfils `layout.Layout`."""

    name = "CLIP text encoder"
    about = "AdvUnlearn and others that retrain the text encoder."

    def recognise(self, keys: Collection[str]) -> bool:
        return any(_plain(key).startswith(_OWN) for key in keys) and not is_lora(keys)

    def read(self, tensors: Mapping[str, Tensor], base: Base) -> Parts:
        plain = {key: _plain(key) for key in tensors if _plain(key) not in _UNUSED}
        found = text_owners(plain, {key: tuple(tensors[key].shape) for key in plain}, base)
        refuse_unknown([key for key in plain if key not in found], self.name)
        return differences(found, base, tensors)


def text_owners(plain: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]], base: Base) -> dict[str, Owner]:
    """The weights that tensors stand for in the text encoder whose shapes they have; FamilyError where none has.

    Args:
        plain: names in the encoder, by tensor.
        shapes: of the tensors.
    """
    fitting = []
    for stream in base.streams:
        owners: dict[str, Owner] = {key: (TEXT, f"{stream}.{name}") for key, name in plain.items()}
        known = {key: owner for key, owner in owners.items() if owner in base.shapes}
        if known and all(base.shapes[owner] == shapes[key] for key, owner in known.items()):
            fitting.append(known)
    if not fitting:
        raise FamilyError(
            "The CLIP has no text encoder with weights of these names and shapes.",
            "Connect the CLIP that the file was made for.",
        )
    return fitting[0]


def _plain(key: str) -> str:
    for prefix in _PREFIXES:
        key = key.removeprefix(prefix)
    return key


LAYOUT = TextEncoder()
