"""Erasers out of the files that other programs publish, recognised by the names of their tensors alone."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from ..concepts import Concept
from ..errors import EraserFileError, LetheError
from ..provenance import versions
from ..registry import layouts
from ..result import Eraser, Recipe, WeightEdit
from ..spec import Value
from ..store.eraser_file import FORMAT, load_eraser
from .base import ADAPTERS, TEXT, Base
from .layout import Layout, Parts
from .tensor_file import TensorsOfFile, opened

IMPORTED = "imported"
_TOLD = ("method", "rank", "alpha", "name")
"""Metadata that goes into the recipe."""
_LONGEST = 200


def import_eraser(path: Path, base: Base, concepts: Sequence[str] = ()) -> Eraser:
    """Read a file of any known layout; one that the pack wrote itself too.

    Args:
        base: the model that the file is for; whole weights become differences to it.
        concepts: what the file erases, where it does not say so itself.

    Raises:
        EraserFileError: names the file and what is wrong with it, or the first tensors that no layout knows.
    """
    with opened(path) as file:
        if file.metadata.get("format") == FORMAT:
            eraser = load_eraser(path)
            eraser.check_family(base.family)
            return eraser
        layout = layout_of(path, file.tensors)
        try:
            parts = layout.read(file.tensors, base)
            recipe = _recipe(path, layout, file.metadata, base, concepts)
            adapters, text = (_named(parts, part) for part in (ADAPTERS, TEXT))
            return Eraser(recipe, adapters=adapters, text_encoder=text, modules=parts.modules)
        except LetheError as error:
            problem = error.problem.rstrip(".")
            raise EraserFileError(f"'{path}' cannot be imported: {problem}.", error.advice) from error


def layout_of(path: Path, tensors: TensorsOfFile) -> Layout:
    """The layout of a file; EraserFileError where none knows its tensors."""
    for layout in layouts().values():
        if layout.recognise(tensors):
            return layout
    shown = ", ".join(f"'{key[:120]}'" for key in list(tensors)[:3]) or "none at all"
    raise EraserFileError(
        f"'{path}' is of no known layout; its tensors are {shown}.", f"Known layouts: {', '.join(layouts())}."
    )


def concepts_in(metadata: Mapping[str, str]) -> list[str]:
    """Names of the erased concepts, as exports of this pack or programs of SPM's kind write them into a file.

    Raises:
        EraserFileError: the entry is broken.
    """
    if "concepts" not in metadata:
        return split_names(metadata.get("prompts", ""))
    try:
        names = json.loads(metadata["concepts"])
    except (ValueError, RecursionError) as error:
        raise EraserFileError("its metadata 'concepts' is broken", "Ask its author for another file.") from error
    if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names):
        raise EraserFileError("its metadata 'concepts' is no list of names", "Ask its author for another file.")
    return names


def split_names(text: str) -> list[str]:
    """Names that stand in a text, with commas or line ends between them."""
    return [name.strip() for name in re.split(r"[,\n]", text) if name.strip()]


def _named(parts: Parts, part: str) -> dict[str, WeightEdit]:
    return {name: edit for (own, name), edit in parts.edits.items() if own == part}


def _recipe(path: Path, layout: Layout, metadata: Mapping[str, str], base: Base, concepts: Sequence[str]) -> Recipe:
    told: dict[str, Value] = {name: metadata[name][:_LONGEST] for name in _TOLD if name in metadata}
    names = list(concepts) or concepts_in(metadata)
    return Recipe(
        method=f"{IMPORTED}: {layout.name}",
        settings={"file": path.name, **told},
        concepts=tuple(asdict(Concept(name)) for name in names),
        preserve=(),
        family=base.family.name,
        encoder=base.encoder,
        versions=versions(),
    )
