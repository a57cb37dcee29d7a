"""Files of trained sparse autoencoders (learn/sparse_code.py), safetensors.

Tensors: `encoder` `[m, d]`, `bias` `[m]`, `decoder` `[d, m]`, `centre` `[d]`, and of one number each `scale` and `k`.
The metadata may name the `layer` that they are for, counted from 0. An autoencoder that another program trained on h
itself fits in with `scale` 1.
"""

from __future__ import annotations

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
_AGAIN = "Delete it to train another, or give another name."


def save_code(code: SparseCode, layer: int, path: Path) -> None:
    """Write an autoencoder of the states of a layer, 0 for the first.

    Raises:
        EraserFileError: the folder cannot be written to, or the disk is full.
    """
    tensors = {name: torch.as_tensor(getattr(code, name)).detach().cpu().contiguous() for name in _AXES}
    write_bytes(path, save(tensors, metadata={_LAYER: str(layer)}))


def load_code(path: Path, width: int, layers: int, device: torch.device) -> tuple[SparseCode, int | None]:
    """Read an autoencoder of states `[..., width]`, for a text encoder of so many layers.

    Returns:
        The autoencoder on a device, and the number of its layer where the file tells it.

    Raises:
        EraserFileError: names the file and what is wrong with it: cut short, tensors that are missing, not known, not
            finite or of the wrong shape, another width, a layer that is not there.
    """
    with opened(path) as file:
        try:
            tensors = _checked(file, width)
            layer = _layer(file.metadata.get(_LAYER), layers)
        except LetheError as error:
            problem = f"'{path}' holds no steerer for this model: {error.problem}."
            raise EraserFileError(problem, error.advice) from error
    parts = {name: tensors[name].float().to(device) for name, axes in _AXES.items() if axes}
    return SparseCode(**parts, scale=float(tensors["scale"]), k=int(tensors["k"])), layer


def _checked(file: TensorFile, width: int) -> dict[str, Tensor]:
    missing, unknown = [n for n in _AXES if n not in file.tensors], [n for n in file.tensors if n not in _AXES]
    if missing or unknown:
        which = f"'{missing[0]}' is missing" if missing else f"'{unknown[0][:120]}' is not known"
        raise EraserFileError(which, f"Its tensors have to be {', '.join(_AXES)}.")
    sizes = {"m": int(torch.Size(file.tensors.shape("bias")).numel()), "d": width}
    for name, axes in _AXES.items():
        shape, wanted = file.tensors.shape(name), tuple(sizes[axis] for axis in axes)
        if shape != wanted and (axes or torch.Size(shape).numel() != 1):
            raise EraserFileError(
                f"'{name}' has shape {list(shape)}, and {list(wanted)} is needed for features of width {width}", _AGAIN
            )
    tensors = {name: file.tensors[name] for name in _AXES}
    for name in ("scale", "k"):
        if float(tensors[name]) <= 0:
            raise EraserFileError(f"'{name}' is {float(tensors[name]):g}, and has to be more than 0", _AGAIN)
    return tensors


def _layer(text: str | None, layers: int) -> int | None:
    if text is None:
        return None
    if not text.isdecimal() or len(text) > len(str(layers)) or int(text) >= layers:
        raise EraserFileError(f"it is for layer '{text[:40]}', and there are {layers}, from 0 on", _AGAIN)
    return int(text)
