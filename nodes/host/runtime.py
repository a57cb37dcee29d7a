"""Progress, cancelling, folders and logging, as the host wants them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import copy_context
from functools import cache
from pathlib import Path
from threading import Event
from typing import Any, TypeVar

import comfy.model_management
import comfy.utils
import folder_paths
from comfy_execution.graph_utils import ExecutionBlocker
from comfy_execution.utils import ExecutionContext, get_executing_context
from safetensors.torch import save
from torch import Tensor

from ...erasers.errors import ConceptError, EraserFileError
from ...erasers.spec import MethodSpec, Value
from ...erasers.store.atomic import write_bytes
from ...erasers.store.preserve_cache import PreserveCache
from ...erasers.store.report_files import save_report

LOG = logging.getLogger("lethe")
SUFFIX = ".safetensors"
LISTS = (".txt", ".csv")
Item = TypeVar("Item")
throw_if_cancelled: Callable[[], None] = comfy.model_management.throw_exception_if_processing_interrupted

_FINE = 1000
"""Steps of a node's bar, which work within work moves on by fractions."""
_LOOK = 0.2
"""Seconds between two looks at a file that grows."""
_levels: dict[ExecutionContext | None, list[list[int]]] = {}
"""What is under way, from the outermost: how much is done, of how much."""


@contextmanager
def progress(count: int, pulse: Callable[[], None] = throw_if_cancelled) -> Iterator[Callable[..., None]]:
    """The bar of the node that runs, for work of `count` steps; what it gives is called after each.

    It may be called with a picture to show in the node, as the host's previewers make them.

    Inside other work its steps are fractions of that one's present step, since a node has one bar.

    Args:
        pulse: is called at the start and at each step; ends the work when the user cancelled.
    """
    here = get_executing_context()
    levels = _levels.setdefault(here, [])
    bar, level = comfy.utils.ProgressBar(_FINE), [0, max(count, 1)]
    levels.append(level)

    def step(picture: Any = None) -> None:
        pulse()
        level[0] += 1
        done, share = 0.0, 1.0
        for passed, whole in levels:
            share /= whole
            done += passed * share
        bar.update_absolute(round(done * _FINE), _FINE, picture)

    try:
        pulse()
        yield step
    finally:
        levels[:] = [own for own in levels if own is not level]
        if not levels:
            _levels.pop(here, None)


def each(items: Iterable[Item], count: int, pulse: Callable[[], None] = throw_if_cancelled) -> Iterator[Item]:
    """Go through `items` with a progress bar, stopping when the user cancels."""
    with progress(count, pulse) as step:
        for item in items:
            yield item
            step()


@contextmanager
def filling(folder: Path, size: int) -> Iterator[None]:
    """The bar of the node that runs, while the host writes about `size` bytes into a folder.

    Its writer cannot be stopped: when the user cancelled, this ends with the host's interruption after the writing.
    """
    ended = Event()
    with progress(_FINE) as step, ThreadPoolExecutor(1) as pool:

        def watch() -> int:
            shown = 0
            while not ended.wait(_LOOK):
                for _ in range(shown, min(_FINE * _written(folder) // max(size, 1), _FINE - 1)):
                    step()
                    shown += 1
            return shown

        watching = pool.submit(copy_context().run, watch)
        try:
            yield
        finally:
            ended.set()
        for _ in range(watching.result(), _FINE):
            step()


def _written(folder: Path) -> int:
    """Bytes of a folder's files that are on the disk: a file may have its whole size before it is written."""
    total = 0
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # written, and renamed since
            found = path.stat()
            total += min(found.st_size, 512 * getattr(found, "st_blocks", found.st_size))
    return total


def blocked(problem: str) -> ExecutionBlocker:
    """What stands in an output that there is nothing for: nodes that are connected to it say why."""
    return ExecutionBlocker(problem)


@cache
def grams() -> PreserveCache:
    """Gram matrices of preserved prompts, kept between runs in the user folder under `lethe/preserved`."""
    return PreserveCache(Path(folder_paths.get_user_directory()) / "lethe" / "preserved")


def eraser_folder() -> Path:
    """Where erasers are kept: `models/lethe`. It is made when the first eraser is saved."""
    return Path(folder_paths.models_dir) / "lethe"


def list_files() -> list[str]:
    """Names of the text and CSV files in the host's input folder."""
    folder = Path(folder_paths.get_input_directory())
    return sorted(path.name for path in folder.glob("*") if path.suffix.lower() in LISTS)


def list_path(name: str) -> Path:
    """A file of the input folder; ConceptError for a name that is no text or CSV file in it."""
    folder = Path(folder_paths.get_input_directory()).resolve()
    path = (folder / name).resolve()
    if path.parent != folder or path.suffix.lower() not in LISTS or not path.is_file():
        raise ConceptError(f"There is no list '{name}' in the input folder.", "Put a .txt or .csv file there.")
    return path


def list_version(name: str) -> int:
    """When a file of the input folder was last written, in nanoseconds; 0 where there is none."""
    path = Path(folder_paths.get_input_directory()) / name
    return path.stat().st_mtime_ns if path.is_file() else 0


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


def with_paths(spec: MethodSpec, settings: Mapping[str, Value]) -> dict[str, Value]:
    """Checked settings with paths of files of models in place of their names.

    Raises:
        EraserFileError: a name leads out of its folder.
    """
    found = dict(settings)
    for own in spec.parameters:
        name = str(settings[own.name]).removesuffix(SUFFIX)
        if own.folder and name:
            found[own.name] = str(inside(Path(folder_paths.models_dir) / own.folder, f"{name}{SUFFIX}"))
    return found


def evaluation_folder() -> Path:
    """Where evaluations keep their pictures, so that a stopped one goes on: `output/lethe/pictures`."""
    return _output() / "pictures"


def write_report(name: str, page: str, content: str, chart: Tensor) -> None:
    """Write a report's page, JSON and chart `[1, h, w, 3]` to `output/lethe`.

    Raises:
        EraserFileError: the name leads out of the folder, or the disk is full.
    """
    save_report(inside(_output(), name), page, content, chart)


def embedding_path(name: str) -> Path:
    """The file of a learned word under models/embeddings; EraserFileError for a name that no prompt can hold."""
    if not name.replace("-", "").replace("_", "").replace("/", "").isalnum():
        raise EraserFileError(f"'{name}' cannot stand in a prompt.", "Use letters, digits, '-' and '_'.")
    return inside(Path(folder_paths.get_folder_paths("embeddings")[0]), f"{name}{SUFFIX}")


def save_embedding(path: Path, stream: str, vectors: Tensor) -> None:
    """Write learned token vectors `[k, d]` as the host and other programs read them.

    Raises:
        EraserFileError: the folder cannot be written to, or the disk is full.
    """
    write_bytes(path, save({stream: vectors.detach().float().cpu().contiguous()}))


def clip_folders() -> list[str]:
    """Complete CLIP models in transformers' form: sub-folders of models/clip_vision with a config.json."""
    return sorted({path.parent.name for root in _clip_roots() for path in root.glob("*/config.json")})


def clip_folder(name: str) -> Path:
    """The folder of a complete CLIP model; EraserFileError where there is none."""
    for root in _clip_roots():
        if name and (root / name / "config.json").is_file():
            return inside(root, name)
    raise EraserFileError(f"There is no CLIP model '{name}'.", "Put its folder into models/clip_vision.")


def _clip_roots() -> list[Path]:
    return [Path(root) for root in folder_paths.get_folder_paths("clip_vision")]


def _output() -> Path:
    return Path(folder_paths.get_output_directory()) / "lethe"


def inside(folder: Path, name: str) -> Path:
    """A path below a folder; EraserFileError for a name that leads out of it."""
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise EraserFileError(f"'{name}' leads out of {folder.name}.", "Use letters and digits.")
    return path
