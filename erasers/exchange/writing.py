"""Erasers as files that other programs load."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from ..errors import SettingError
from ..provenance import VERSION
from ..registry import layout_named, layouts
from ..result import Eraser
from ..store.atomic import write_bytes
from .base import Base
from .factors import changes
from .layout import WritableLayout

FORMAT = "lethe-export"


@dataclass(frozen=True)
class Export:
    """A file that is ready to be written.

    Attributes:
        tensors: by name, on the CPU.
        metadata: as it stands in the file's header.
        summary: what became of the eraser, in a line.
    """

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    summary: str

    def save(self, path: Path) -> None:
        """Write the file, complete or not at all; EraserFileError where that fails."""
        write_bytes(path, save(dict(self.tensors), metadata=dict(self.metadata)))


def writable_layouts() -> list[str]:
    """Names of the layouts that erasers can be written in."""
    return [name for name, layout in layouts().items() if isinstance(layout, WritableLayout)]


def export_eraser(eraser: Eraser, base: Base, layout: str, rank: int = 0) -> Export:
    """An eraser at strength 1, in a layout of other programs.

    Args:
        base: the model it is for, as it is before the eraser is applied.
        rank: the most a weight's factors may have; 0 for as many as it takes to be exact.

    Raises:
        SettingError: the eraser does not fit into the layout.
        FamilyError: it is not for this model.
    """
    chosen = layout_named(layout)
    if not isinstance(chosen, WritableLayout):
        raise SettingError(
            f"Erasers cannot be written as '{layout}'.", f"Choose one of: {', '.join(writable_layouts())}."
        )
    found = changes(eraser, base)
    written = chosen.write(found, base, rank)
    metadata = metadata_of(eraser, layout) | {"energy_kept": f"{written.kept:.6f}"}
    size = sum(tensor.numel() * tensor.element_size() for tensor in written.tensors.values())
    kept = "exact" if written.kept == 1 else f"keeps at least {written.kept:.1%} of each change's squared norm"
    return Export(written.tensors, metadata, f"{layout}: {len(found)} weights, {size / 2**20:.2f} MB, {kept}.")


def metadata_of(eraser: Eraser, layout: str) -> dict[str, str]:
    """What a file says about the eraser in it."""
    return {
        "format": FORMAT,
        "layout": layout,
        "method": eraser.recipe.method,
        "concepts": json.dumps(list(eraser.recipe.names), ensure_ascii=False),
        "family": eraser.recipe.family,
        "lethe": VERSION,
    }
