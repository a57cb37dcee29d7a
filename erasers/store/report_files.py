"""A report as files that people open: Markdown, JSON and pictures."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image
from torch import Tensor

from .atomic import write_bytes

SUFFIXES = (".md", ".json", ".png")


def save_report(stem: Path, page: str, content: str, picture: Tensor) -> None:
    """Write a report's page, its JSON and a picture `[1, h, w, 3]` in 0..1 as `<stem>.md`, `.json` and `.png`.

    Raises:
        EraserFileError: the folder cannot be written to, or the disk is full.
    """
    for suffix, data in zip(SUFFIXES, (page.encode(), content.encode(), _png(picture)), strict=True):
        write_bytes(stem.with_name(f"{stem.name}{suffix}"), data)


def save_sheet(path: Path, sheet: Tensor) -> None:
    """Write pictures on one sheet, `[1, h, w, 3]` in 0..1, as a PNG file.

    Raises:
        EraserFileError: the folder cannot be written to, or the disk is full.
    """
    write_bytes(path, _png(sheet))


def _png(image: Tensor) -> bytes:
    target = io.BytesIO()
    Image.fromarray((image[0] * 255).round().byte().numpy()).save(target, "png")
    return target.getvalue()
