"""Eraser files: one safetensors file per eraser, its recipe as JSON in the header.

Tensor names are `<part>.<owner>.<tensor>`: the part `context` holds operators by text-encoder stream,
`adapters` and `text_encoder` hold edits of weights by parameter name, `modules` small networks by the layer
they stand beside. `training.<name>` is what training needs to go on. A reader refuses what it does not know
instead of loading half of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..errors import EraserFileError, LetheError
from ..result import Bottleneck, ContextOperator, Eraser, Recipe, WeightEdit
from .atomic import write_bytes

FORMAT, VERSION = "lethe-eraser", 1
PARTS: dict[str, type[ContextOperator] | type[WeightEdit] | type[Bottleneck]] = {
    "context": ContextOperator,
    "adapters": WeightEdit,
    "text_encoder": WeightEdit,
    "modules": Bottleneck,
}
TRAINING = "training"


def save_eraser(eraser: Eraser, path: Path) -> None:
    """Write an eraser; an existing file is replaced only once the new one is complete.

    Raises:
        EraserFileError: the folder cannot be written to, or the disk is full.
    """
    tensors = {
        f"{part}.{owner}.{name}": tensor.detach().cpu().clone().contiguous()
        for part in PARTS
        for owner, entry in getattr(eraser, part).items()
        for name, tensor in entry.tensors().items()
    }
    tensors |= {f"{TRAINING}.{name}": tensor.detach().cpu().clone() for name, tensor in eraser.training.items()}
    header = {"format": FORMAT, "format_version": str(VERSION), "recipe": json.dumps(asdict(eraser.recipe))}
    write_bytes(path, save(tensors, metadata=header))


def load_eraser(path: Path) -> Eraser:
    """Read and check an eraser.

    Raises:
        EraserFileError: names the file and what is wrong with it: missing, truncated, not an eraser,
            a newer format, a field that is missing or of the wrong type, tensors that do not fit.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            _check_format(path, header)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise EraserFileError(
            f"'{path}' cannot be read as a safetensors file: {error}.", "It may be cut short or renamed; copy it again."
        ) from error
    recipe = _read_recipe(path, header.get("recipe", ""))
    training = {name: tensors.pop(f"{TRAINING}.{name}") for name in _names_of(TRAINING, tensors)}
    parts = _group(path, tensors)
    try:
        found: dict[str, Any] = {
            part: {owner: PARTS[part](**entry) for owner, entry in owners.items()} for part, owners in parts.items()
        }
        return Eraser(recipe, **found, training=training)
    except LetheError as error:
        raise EraserFileError(f"'{path}' holds a broken edit: {error.problem}", "Make the eraser again.") from error


def _names_of(part: str, tensors: Mapping[str, Tensor]) -> list[str]:
    return [name.removeprefix(f"{part}.") for name in tensors if name.startswith(f"{part}.")]


def _check_format(path: Path, header: Mapping[str, str]) -> None:
    if header.get("format") != FORMAT:
        raise EraserFileError(f"'{path}' is not an eraser.", "Choose a file that 'Save Eraser' wrote.")
    if header.get("format_version") != str(VERSION):
        raise EraserFileError(
            f"'{path}' has format version {header.get('format_version')!r}; this pack reads version {VERSION}.",
            "Update Lethe.",
        )


def _read_recipe(path: Path, text: str) -> Recipe:
    def broken(field: str) -> EraserFileError:
        return EraserFileError(f"'{path}': field '{field}' is missing or of the wrong type.", "Make the eraser again.")

    try:
        content = json.loads(text)
    except ValueError as error:
        raise broken("recipe") from error
    if not isinstance(content, dict):
        raise broken("recipe")
    kinds = {"settings": dict, "concepts": list, "preserve": list, "seed": int, "versions": dict}
    for entry in fields(Recipe):
        if not isinstance(content.get(entry.name), kinds.get(entry.name, str)):
            raise broken(f"recipe.{entry.name}")
    if not all(isinstance(concept, dict) and isinstance(concept.get("text"), str) for concept in content["concepts"]):
        raise broken("recipe.concepts")
    if not all(isinstance(prompt, str) for prompt in content["preserve"]):
        raise broken("recipe.preserve")
    known = {entry.name: content[entry.name] for entry in fields(Recipe)}
    return Recipe(**{**known, "concepts": tuple(content["concepts"]), "preserve": tuple(content["preserve"])})


def _group(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, dict[str, dict[str, Tensor]]]:
    """Tensors by part, owner and name."""
    found: dict[str, dict[str, dict[str, Tensor]]] = {}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        owner, _, kind = rest.rpartition(".")
        names = {entry.name for entry in fields(PARTS[part])} if part in PARTS else set()
        is_index = kind == "indices" and tensor.dtype == torch.int64
        if kind not in names or not owner or not (tensor.is_floating_point() or is_index):
            raise EraserFileError(
                f"'{path}' holds an unknown tensor '{name}'.", "Update Lethe, or make the eraser again."
            )
        found.setdefault(part, {}).setdefault(owner, {})[kind] = tensor if is_index else tensor.float()
    return found
