"""Progress, cancelling, folders and logging, as the host wants them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import comfy.model_management
import comfy.utils
import folder_paths

from ...erasers.errors import EraserFileError

LOG = logging.getLogger("lethe")
SUFFIX = ".safetensors"
Item = TypeVar("Item")


def each(items: Iterable[Item], count: int) -> Iterator[Item]:
    """Go through `items` with a progress bar, stopping when the user cancels."""
    bar = comfy.utils.ProgressBar(count)
    for item in items:
        comfy.model_management.throw_exception_if_processing_interrupted()
        yield item
        bar.update(1)


def eraser_folder() -> Path:
    """Where erasers are kept: `models/lethe`. It is made when the first eraser is saved."""
    return Path(folder_paths.models_dir) / "lethe"


def eraser_names() -> list[str]:
    """Names of the saved erasers, without suffix, sub-folders included."""
    folder = eraser_folder()
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob(f"*{SUFFIX}"))


def eraser_path(name: str) -> Path:
    """The file of an eraser; EraserFileError for an empty name or one that leads out of the folder."""
    folder = eraser_folder().resolve()
    name = name.strip().removesuffix(SUFFIX)
    path = (folder / f"{name}{SUFFIX}").resolve()
    if not name or name.endswith("/") or not path.is_relative_to(folder):
        raise EraserFileError(
            f"'{name}' is no name for an eraser.", "Use letters and digits; '/' makes a sub-folder of models/lethe."
        )
    return path
