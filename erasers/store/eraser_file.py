"""Eraser files: one safetensors file per eraser, its recipe as JSON in the header.

Tensor names are `<part>.<owner>.<tensor>`: the part `context` holds operators by text-encoder stream,
`adapters` and `text_encoder` hold edits of weights by parameter name, `modules` small networks by the layer
they stand beside. `training.<name>` is what training needs to go on. The same names behind `members.<number>.` are
those of an eraser behind a gate, whose own tensors are `members.<number>.gate.<name>`. A reader refuses what it does
not know instead of loading half of it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..errors import EraserFileError, LetheError
from ..registry import gates
from ..result import Bottleneck, ContextOperator, Eraser, Member, Recipe, WeightEdit
from .atomic import write_bytes

FORMAT, VERSION = "lethe-eraser", 1
PARTS: dict[str, type[ContextOperator] | type[WeightEdit] | type[Bottleneck]] = {
    "context": ContextOperator,
    "adapters": WeightEdit,
    "text_encoder": WeightEdit,
    "modules": Bottleneck,
}
TRAINING, MEMBERS, GATE, FIGURES = "training", "members", "gate", "figures"
_INTEGERS = {"indices", "ids", "owners", "start"}
"""Tensors of places and of numbers of tokens; all others are real numbers."""


def save_eraser(eraser: Eraser, path: Path) -> None:
    """Write an eraser; an existing file is replaced only once the new one is complete.

    Raises:
        EraserFileError: the folder cannot be written to, or the disk is full.
    """
    named = eraser.tensors() | {f"{TRAINING}.{name}": tensor for name, tensor in eraser.training.items()}
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in named.items()}
    header = {"format": FORMAT, "format_version": str(VERSION), "recipe": json.dumps(asdict(eraser.recipe))}
    if eraser.figures:
        header[FIGURES] = json.dumps({name: [_number(part) for part in own] for name, own in eraser.figures.items()})
    if eraser.members:
        header[MEMBERS] = json.dumps([_described(member) for member in eraser.members])
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
            # Copied: what is mapped from the file would change with it, and Windows would not let it be replaced.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise EraserFileError(
            f"'{path}' cannot be read as a safetensors file: {error}.", "It may be cut short or renamed; copy it again."
        ) from error
    content = _json(path, "recipe", header.get("recipe", ""), dict)
    figures = _figures(path, _json(path, FIGURES, header.get(FIGURES, "{}"), dict))
    described = _json(path, MEMBERS, header.get(MEMBERS, "[]"), list)
    try:
        members = tuple(_member(path, tensors, number, entry) for number, entry in enumerate(described))
        training = _taken(tensors, f"{TRAINING}.")
        parts = _parts(path, tensors)
        return Eraser(_recipe(path, content), **parts, training=training, members=members, figures=figures)
    except EraserFileError:
        raise
    except LetheError as error:
        raise EraserFileError(f"'{path}' holds a broken edit: {error.problem}", "Make the eraser again.") from error


def _number(value: float) -> float | None:
    """A number as JSON has it: None for what was not measured."""
    return value if math.isfinite(value) else None


def _figures(path: Path, content: dict[str, object]) -> dict[str, tuple[float, float, float]]:
    found = {}
    for name, own in content.items():
        parts = own if isinstance(own, list) else []
        if len(parts) != 3 or not all(part is None or type(part) in (int, float) for part in parts):
            raise _broken(path, f"{FIGURES}.{name[:40]}")
        value, low, high = (math.nan if part is None else float(part) for part in parts)
        found[name] = (value, low, high)
    return found


def _described(member: Member) -> dict[str, Any]:
    gate = {"kind": member.gate.kind, "threshold": member.gate.threshold}
    return {"recipe": asdict(member.eraser.recipe), GATE: gate}


def _member(path: Path, tensors: dict[str, Tensor], number: int, described: object) -> Member:
    """The member of a number, whose tensors are taken out of `tensors`."""
    gate = described.get(GATE) if isinstance(described, dict) else None
    kind, threshold = (gate.get("kind"), gate.get("threshold")) if isinstance(gate, dict) else (None, None)
    if not isinstance(described, dict) or not isinstance(kind, str) or not isinstance(threshold, float | int):
        raise _broken(path, f"{MEMBERS}[{number}]")
    if kind not in gates() or not 0 <= threshold <= 1:
        raise EraserFileError(f"'{path}' has a gate '{kind}' of threshold {threshold}.", "Update Lethe.")
    own = _taken(tensors, f"{MEMBERS}.{number}.")
    given = _taken(own, f"{GATE}.")
    keys = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in given.items()}
    for name, tensor in keys.items():
        if tensor.is_floating_point() == (name in _INTEGERS) or not bool(torch.isfinite(tensor).all()):
            raise _broken(path, f"{MEMBERS}.{number}.{GATE}.{name}")
    opened = gates()[kind].load(keys, float(threshold))
    return Member(opened, Eraser(_recipe(path, described.get("recipe")), **_parts(path, own)))


def _taken(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors of a prefix, without it; they leave `tensors`."""
    names = [name for name in tensors if name.startswith(prefix)]
    return {name.removeprefix(prefix): tensors.pop(name) for name in names}


def _check_format(path: Path, header: Mapping[str, str]) -> None:
    if header.get("format") != FORMAT:
        raise EraserFileError(f"'{path}' is not an eraser.", "Choose a file that 'Save Eraser' wrote.")
    if header.get("format_version") != str(VERSION):
        raise EraserFileError(
            f"'{path}' has format version {header.get('format_version')!r}; this pack reads version {VERSION}.",
            "Update Lethe.",
        )


def _broken(path: Path, field: str) -> EraserFileError:
    return EraserFileError(f"'{path}': field '{field}' is missing or of the wrong type.", "Make the eraser again.")


def _json(path: Path, field: str, text: str, kind: type) -> Any:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _broken(path, field) from error
    if not isinstance(content, kind):
        raise _broken(path, field)
    return content


def _recipe(path: Path, content: object) -> Recipe:
    if not isinstance(content, dict):
        raise _broken(path, "recipe")
    kinds = {"settings": dict, "concepts": list, "preserve": list, "seed": int, "versions": dict}
    for entry in fields(Recipe):
        if not isinstance(content.get(entry.name), kinds.get(entry.name, str)):
            raise _broken(path, f"recipe.{entry.name}")
    if not all(isinstance(concept, dict) and isinstance(concept.get("text"), str) for concept in content["concepts"]):
        raise _broken(path, "recipe.concepts")
    if not all(isinstance(prompt, str) for prompt in content["preserve"]):
        raise _broken(path, "recipe.preserve")
    known = {entry.name: content[entry.name] for entry in fields(Recipe)}
    return Recipe(**{**known, "concepts": tuple(content["concepts"]), "preserve": tuple(content["preserve"])})


def _parts(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The parts of an eraser; NumericsError where tensors do not fit each other."""
    found: dict[str, dict[str, dict[str, Tensor]]] = {}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        owner, _, kind = rest.rpartition(".")
        names = {entry.name for entry in fields(PARTS[part])} if part in PARTS else set()
        is_index = kind in _INTEGERS and tensor.dtype == torch.int64
        if kind not in names or not owner or not (tensor.is_floating_point() or is_index):
            raise EraserFileError(
                f"'{path}' holds an unknown tensor '{name}'.", "Update Lethe, or make the eraser again."
            )
        found.setdefault(part, {}).setdefault(owner, {})[kind] = tensor if is_index else tensor.float()
    return {part: {owner: PARTS[part](**entry) for owner, entry in owners.items()} for part, owners in found.items()}
