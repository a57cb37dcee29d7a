"""Files of trained sparse autoencoders (learn/sparse_code.py), safetensors.

Tensors: `encoder` `[m, d]`, `bias` `[m]`, `decoder` `[d, m]`, `centre` `[d]`, and of one number each `scale` and `k`.
The metadata may name the `layer` that they are for, counted from 0.

Files of other programs' top-k autoencoders are read too, by the names of their tensors: those of OpenAI's
sparse_autoencoder, EleutherAI's sparsify and SAELens. They are of h itself, so `scale` is 1; `k` and the layer stand
elsewhere. Only safetensors: a program that saves with pickle has to convert.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from ..errors import EraserFileError, LetheError
from ..exchange.tensor_file import TensorFile, opened
from ..learn.sparse_code import SparseCode
from .atomic import write_bytes

_LAYER = "layer"
_AXES = {"encoder": "md", "bias": "m", "decoder": "dm", "centre": "d", "scale": "", "k": ""}
_FOREIGN: tuple[Mapping[str, str], ...] = (
    {"encoder.weight": "encoder", "latent_bias": "bias", "decoder.weight": "decoder", "pre_bias": "centre"},
    {"encoder.weight": "encoder", "encoder.bias": "bias", "W_dec": "decoder.T", "b_dec": "centre"},
    {"W_enc": "encoder.T", "b_enc": "bias", "W_dec": "decoder.T", "b_dec": "centre"},
)
"""Other programs' names and ours; T for the transpose."""
_IDLE = ("stats_last_nonzero",)
"""Tensors of theirs that training alone needs."""
_AGAIN = "Delete it to train another, or give another name."


def save_code(code: SparseCode, layer: int, path: Path) -> None:
    """Write an autoencoder of the states of a layer, 0 for the first.

    Raises:
        EraserFileError: the folder cannot be written to, or the disk is full.
    """
    tensors = {name: torch.as_tensor(getattr(code, name)).detach().cpu().contiguous() for name in _AXES}
    write_bytes(path, save(tensors, metadata={_LAYER: str(layer)}))


def load_code(path: Path, width: int, layers: int, device: torch.device, k: int) -> tuple[SparseCode, int | None]:
    """Read an autoencoder of states `[..., width]`, for a text encoder of so many layers.

    Args:
        k: latents that are kept, where the file does not tell it.

    Returns:
        The autoencoder on a device, and the number of its layer where the file tells it.

    Raises:
        EraserFileError: names the file and what is wrong with it: cut short, tensors that are missing, not known, not
            finite or of the wrong shape, another width, a layer that is not there.
    """
    with opened(path) as file:
        try:
            tensors = _checked(_own(file, k), width)
            layer = _layer(file.metadata.get(_LAYER), layers)
        except LetheError as error:
            problem = f"'{path}' holds no steerer for this model: {error.problem}."
            raise EraserFileError(problem, error.advice) from error
    parts = {name: tensors[name].float().to(device) for name, axes in _AXES.items() if axes}
    return SparseCode(**parts, scale=float(tensors["scale"]), k=int(tensors["k"])), layer


def _own(file: TensorFile, k: int) -> dict[str, Tensor]:
    """The tensors by our names."""
    found = {name: file.tensors[name] for name in file.tensors if name not in _IDLE}
    for names in _FOREIGN:
        if found.keys() == names.keys():
            own = {to: found[name] for name, to in names.items()}
            turned = {to.removesuffix(".T"): x.T if to.endswith(".T") and x.ndim == 2 else x for to, x in own.items()}
            one, most = torch.tensor(1.0), torch.tensor(float(k))
            return {**{to: x.contiguous() for to, x in turned.items()}, "scale": one, "k": most}
    return found


def _checked(found: Mapping[str, Tensor], width: int) -> Mapping[str, Tensor]:
    missing, unknown = [n for n in _AXES if n not in found], [n for n in found if n not in _AXES]
    if missing or unknown:
        which = f"'{missing[0]}' is missing" if missing else f"'{unknown[0][:120]}' is not known"
        raise EraserFileError(
            which, f"Its tensors have to be {', '.join(_AXES)}, or named as sparsify, SAELens or OpenAI's program do."
        )
    sizes = {"m": found["bias"].numel(), "d": width}
    for name, axes in _AXES.items():
        shape, wanted = tuple(found[name].shape), tuple(sizes[axis] for axis in axes)
        if shape != wanted and (axes or torch.Size(shape).numel() != 1):
            raise EraserFileError(
                f"'{name}' has shape {list(shape)}, and {list(wanted)} is needed for features of width {width}", _AGAIN
            )
    for name in ("scale", "k"):
        if float(found[name]) <= 0:
            raise EraserFileError(f"'{name}' is {float(found[name]):g}, and has to be more than 0", _AGAIN)
    return found


def _layer(text: str | None, layers: int) -> int | None:
    if text is None:
        return None
    if not text.isdecimal() or len(text) > len(str(layers)) or int(text) >= layers:
        raise EraserFileError(f"it is for layer '{text[:40]}', and there are {layers}, from 0 on", _AGAIN)
    return int(text)
