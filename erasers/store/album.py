"""Pictures on disk by what they were drawn from, so that an evaluation that was stopped goes on where it was."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from ..errors import SettingError
from ..painter import Painter, Shot
from .atomic import write_bytes

_SKETCH = "sketch.safetensors"
_TOLERANCE = 1e-4
"""Of the largest number of a sketch: what the machine may add to it, while the weakest edit moves it by more."""


@dataclass(frozen=True)
class Album:
    """The pictures of one model under one set of sampling settings, in a folder of their own.

    A picture is a PNG of 8 bits per channel; it is written whole or not at all.
    """

    folder: Path

    def missing(self, shots: Sequence[Shot]) -> list[int]:
        """Places of shots that have no picture yet."""
        return [place for place, shot in enumerate(shots) if not self._path(shot).is_file()]

    def add(self, shots: Sequence[Shot], pictures: Tensor) -> None:
        """Keep pictures `[n, 3, h, w]` in 0..1, one per shot.

        Raises:
            EraserFileError: the folder cannot be written to, or the disk is full.
        """
        for shot, picture in zip(shots, pictures, strict=True):
            pixels = (picture.clamp(0, 1) * 255).round().to(torch.uint8).movedim(0, -1).cpu().numpy()
            target = io.BytesIO()
            Image.fromarray(pixels).save(target, "png")
            write_bytes(self._path(shot), target.getvalue())

    def read(self, shots: Sequence[Shot]) -> Tensor:
        """The kept pictures of shots, `[n, 3, h, w]` float32 in 0..1."""
        found = [np.asarray(Image.open(self._path(shot)).convert("RGB"), dtype=np.float32) for shot in shots]
        return torch.from_numpy(np.stack(found)).movedim(-1, 1) / 255

    def _path(self, shot: Shot) -> Path:
        """Where a picture lies; only prompts have a name that says what they are."""
        if not all(isinstance(source, str) for _, source in shot.cue.parts):
            raise SettingError("Only pictures of prompts can be kept.", "Draw embeddings without an album.")
        said = json.dumps([shot.cue.text, shot.seed, shot.cfg])
        return self.folder / f"{hashlib.sha256(said.encode()).hexdigest()[:24]}.png"


def open_album(root: Path, painter: Painter, prompts: Sequence[str]) -> Album:
    """The album of what `painter` draws, below `root`: an earlier one of the same model and settings, or a new one.

    Two models count as the same when their sketches towards `prompts` agree; name those that an erasure changes.
    """
    known = hashlib.sha256(json.dumps([dict(painter.settings()), list(prompts)]).encode()).hexdigest()[:12]
    sketch, number = painter.sketch(prompts), 0
    while True:
        folder = root / f"{known}-{number}"
        if not (folder / _SKETCH).is_file():
            write_bytes(folder / _SKETCH, save({"sketch": sketch}))
            return Album(folder)
        if _same(folder / _SKETCH, sketch):
            return Album(folder)
        number += 1


def _same(path: Path, sketch: Tensor) -> bool:
    try:
        other = load_file(path)["sketch"]
    except (SafetensorError, KeyError):
        return False
    scale = float(sketch.abs().max())
    return other.shape == sketch.shape and float((other - sketch).abs().max()) <= _TOLERANCE * scale
