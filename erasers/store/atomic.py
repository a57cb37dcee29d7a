"""Writing a file so that nobody ever sees half of it."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError

from ..errors import EraserFileError

_RESERVED = frozenset('<>:"|?*')
"""Windows writes to a hidden stream behind a colon, and refuses the others."""


def write_bytes(path: Path, content: bytes) -> None:
    """Write to a temporary file, then rename: an existing file is replaced only by a complete one.

    Raises:
        EraserFileError: the folder cannot be written to, or the disk is full.
    """

    def write(part: Path) -> None:
        part.write_bytes(content)

    write_with(path, write)


def write_with(path: Path, write: Callable[[Path], None]) -> None:
    """As `write_bytes`, for writers that take a path: they are given one beside `path`.

    Raises:
        EraserFileError: the folder cannot be written to, the disk is full, or not every system allows such a name.
    """
    if _RESERVED & set(path.name):
        raise EraserFileError(f"'{path.name}' is no name for a file on every system.", "Use letters and digits.")
    # Not the `tempfile` module's, whose files nobody but their owner may read.
    part = path.with_name(f"{path.name}.{secrets.token_hex(8)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.open("xb").close()
        write(part)
        with part.open("r+b") as file:  # Windows syncs only what may be written to
            os.fsync(file.fileno())
        part.replace(path)
    except (OSError, SafetensorError) as error:
        raise EraserFileError(
            f"'{path}' could not be written: {error}.", "Free space or choose another folder."
        ) from error
    finally:
        with suppress(OSError):
            part.unlink()
