"""Text encoders under OpenCLIP's names, as checkpoints of SD 2 and SD XL hold them, seen under transformers' names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from torch import Tensor

_LAYER = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)$")
_LAYERS = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
_JOINED = re.compile(r"attn\.in_proj_(weight|bias)$")
_OUTSIDE = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
}
_UNUSED = ("text_projection", "text_projection.weight", "logit_scale", "attn_mask")
_THIRDS = ("q", "k", "v")


class Unjoined(Mapping[str, Tensor]):
    """Tensors of a text encoder by transformers' names; queries, keys and values, joined in the file, come apart.

    Args:
        tensors: of the file.
        prefix: what the encoder's names begin with in it.
    """

    def __init__(self, tensors: Mapping[str, Tensor], prefix: str) -> None:
        self._tensors = tensors
        self._sources: dict[str, tuple[str, int | None]] = {}
        self.unknown: list[str] = []
        """Names in the file that no text encoder of this kind has."""
        for key in tensors:
            if key.startswith(prefix) and not key.endswith(_UNUSED):
                found = _names(key.removeprefix(prefix))
                self._sources |= {name: (key, third) for name, third in found.items()}
                self.unknown += [] if found else [key]

    def __getitem__(self, name: str) -> Tensor:
        key, third = self._sources[name]
        tensor = self._tensors[key]
        return tensor if third is None else tensor.tensor_split(len(_THIRDS))[third]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)


def _names(name: str) -> dict[str, int | None]:
    """transformers' names of a tensor, and which third of it each is; none where it is unknown."""
    if name in _OUTSIDE:
        return {_OUTSIDE[name]: None}
    layer = _LAYER.match(name)
    if layer is None:
        return {}
    place = f"text_model.encoder.layers.{layer[1]}"
    joined = _JOINED.match(layer[2])
    if joined is not None:
        return {f"{place}.self_attn.{way}_proj.{joined[1]}": third for third, way in enumerate(_THIRDS)}
    inner, _, kind = layer[2].rpartition(".")
    return {f"{place}.{_LAYERS[inner]}.{kind}": None} if inner in _LAYERS and kind in ("weight", "bias") else {}
