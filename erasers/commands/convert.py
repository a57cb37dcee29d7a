"""`python -m lethe convert FILE`: a safetensors file out of a pickle of weights.

torch reads it with `weights_only`, which takes tensors and plain containers and refuses everything that could run.
Dictionaries in dictionaries become names joined by dots.
"""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from ..errors import EraserFileError
from ..store.atomic import write_bytes

_WRAPPER = "state_dict"


class Convert:
    """Fulfils `commands.Command`."""

    name = "convert"
    help = "Make a safetensors file of a pickle of weights (.pt, .ckpt, .bin), beside it."

    def configure(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("file", type=Path, help="A file that torch.save wrote.")

    def run(self, arguments: argparse.Namespace) -> str:
        source: Path = arguments.file
        target = source.with_suffix(".safetensors")
        if target.exists():
            raise EraserFileError(f"'{target}' exists already.", "Move it away first.")
        try:
            content = torch.load(source, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise EraserFileError(
                f"'{source}' cannot be read as weights alone: {reason}.", "Ask its author for a safetensors file."
            ) from error
        tensors = dict(_flat(content))
        if not tensors:
            raise EraserFileError(f"'{source}' holds no weights.", "Choose the file that the program calls weights.")
        write_bytes(target, save(tensors))
        return f"{target}: {len(tensors)} tensors"


def _flat(content: object, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    if not isinstance(content, Mapping):
        return
    inner = content.get(_WRAPPER)
    entries: Mapping[object, object] = inner if not prefix and isinstance(inner, Mapping) else content
    for name, value in entries.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{name}", value.detach().clone().contiguous()
        else:
            yield from _flat(value, f"{prefix}{name}.")


COMMAND = Convert()
