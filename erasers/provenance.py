"""Where an eraser comes from: its recipe, and fingerprints of the models it was made on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from importlib import metadata

import torch
from torch import Tensor

from .result import Eraser, Recipe
from .spec import Value
from .task import Task

VERSION = "0.1.0"
_SAMPLED = 24


def recipe_of(method: str, settings: Mapping[str, Value], task: Task, seed: int = 0) -> Recipe:
    """The recipe of an eraser that `method` fits to `task`."""
    return Recipe(
        method=method,
        settings=dict(settings),
        concepts=tuple(asdict(concept) for concept in task.concepts.erase),
        preserve=task.concepts.kept,
        family=task.family.name,
        encoder=task.encoder,
        seed=seed,
        versions=versions(),
    )


def versions(*more: str) -> dict[str, str]:
    """Versions of what figures depend on, and of more packages that are installed."""
    return {"lethe": VERSION, **{name: metadata.version(name) for name in ("torch", *more)}}


def denoiser_fingerprint(weights: Mapping[str, Tensor]) -> str:
    """A short hash of some of a denoiser's matrices, by the names they have there."""
    matrices = {name: value for name, value in weights.items() if value.ndim == 2}
    chosen = sorted(matrices)[:: max(1, len(matrices) // _SAMPLED)]
    return fingerprint((name, matrices[name][:16]) for name in chosen)


def eraser_fingerprint(eraser: Eraser) -> str:
    """A short hash of an eraser's tensors."""
    return fingerprint(eraser.tensors().items())


def fingerprint(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """A short hash of names, shapes and rounded values, the same for one model in any precision.

    Args:
        tensors: names and a few representative tensors, e.g. the first rows of the embeddings.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda pair: pair[0]):
        rounded = (tensor.detach().float() * 256).round().clamp(-30000, 30000).to(torch.int16)
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(rounded.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
