"""A safetensors file of somebody else's, opened with care."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import EraserFileError

_PICKLES = (b"PK", b"\x80")
"""First bytes of what `torch.save` writes: a zip archive with a pickle in it, or a bare pickle."""
_WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


@dataclass(frozen=True)
class TensorFile:
    """An open file: its tensors, read when they are asked for, and its metadata."""

    tensors: TensorsOfFile
    metadata: Mapping[str, str]


class TensorsOfFile(Mapping[str, Tensor]):
    """Tensors by name; each is read, checked and copied when it is asked for.

    Reading raises EraserFileError for numbers that are whole, where a tensor has more than one, or not finite.
    """

    def __init__(self, file: Any, names: list[str]) -> None:
        self._file, self._names = file, dict.fromkeys(names)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        tensor = self._file.get_tensor(name).clone()
        is_count = tensor.numel() == 1 and tensor.dtype in _WHOLE
        if not (tensor.is_floating_point() or is_count):
            raise EraserFileError(f"'{name}' holds numbers of type {tensor.dtype}", "It may be damaged; copy it again.")
        if not bool(torch.isfinite(tensor.float()).all()):
            raise EraserFileError(f"'{name}' holds values that are not finite", "Ask its author for another file.")
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without reading it."""
        return tuple(self._file.get_slice(name).get_shape())


@contextmanager
def opened(path: Path) -> Iterator[TensorFile]:
    """Open a file; what is wrong with it is told together with its name.

    Raises:
        EraserFileError: the file is missing, cut short, a pickle, or no safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            yield TensorFile(TensorsOfFile(file, list(file.keys())), dict(file.metadata() or {}))
    except (OSError, SafetensorError) as error:
        if _is_pickle(path):
            raise EraserFileError(
                f"'{path}' is a pickle, which can run code of its author's when it is read.",
                f"Make a safetensors file of it first: python -m lethe convert {path.name}",
            ) from error
        raise EraserFileError(
            f"'{path}' cannot be read as a safetensors file: {error}.", "It may be cut short or renamed; copy it again."
        ) from error


def _is_pickle(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(2).startswith(_PICKLES)
    except OSError:
        return False
