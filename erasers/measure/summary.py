"""What a fitted eraser does, in a few lines, before any picture is drawn."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from ..algebra.held import hold
from ..algebra.tokens import ALL, LAST
from ..result import ContextOperator, Eraser
from ..task import Task
from .drift import adapter_drift, coincidence_note, coincidences, context_drift, percent, residuals

_SHOWN = 5


def summarise(eraser: Eraser, task: Task) -> str:
    """Say how large an edit is, how far names moved, what drifts, what coincides, and what became of earlier edits.

    Args:
        eraser: fitted to `task`.
        task: its text encoder and what it holds; the held prompts' Gram matrix comes from its cache.
    """
    stream = task.family.stream
    held = hold(task, LAST if eraser.recipe.settings.get("tokens") == LAST else ALL)
    names, rows, targets = _names(task)
    lines = [f"{eraser.recipe.method}: {len(eraser.recipe.concepts)} concepts, {_size(eraser)}."]
    if stream in eraser.context:
        operator = eraser.context[stream]
        before = [earlier.context[stream] for earlier in task.earlier if stream in earlier.context]
        left = residuals([operator, *before], rows, targets)
        lines.append(f"Erased names still {percent(float(left.median()))} of the way from their replacement (median).")
        lines += [context_drift(operator, held).summary(), *_earlier(operator, before, task)]
    sites = {name: edit for name, edit in eraser.adapters.items() if re.search(task.family.sites, name)}
    if sites:
        lines.append(adapter_drift(sites, task.loaded().weights(), held).summary())
    if eraser.text_encoder or eraser.modules or len(sites) < len(eraser.adapters):
        lines.append("What this does to other prompts shows only in pictures: compare before and after.")
    lines.append(coincidence_note(coincidences(rows, names, targets, held)))
    return "\n".join(line for line in lines if line)


def _names(task: Task) -> tuple[list[str], Tensor, Tensor]:
    """Every erased name with its last token and its replacement's."""
    found = [(name, concept.replacement) for concept in task.concepts.erase for name in concept.names]
    rows, targets = (_last(task, [pair[side] for pair in found]) for side in (0, 1))
    return [name for name, _ in found], rows, targets


def _last(task: Task, prompts: list[str]) -> Tensor:
    return torch.stack([prompt.states[prompt.last] for prompt in task.encode(prompts)])


def _earlier(operator: ContextOperator, before: list[ContextOperator], task: Task) -> list[str]:
    """How far a new operator takes earlier erased names back from where their own eraser put them."""
    pairs = [
        (str(concept["text"]), str(concept.get("replacement", "")))
        for eraser in task.earlier
        for concept in eraser.recipe.concepts
        if task.family.stream in eraser.context
    ]
    if not pairs:
        return []
    rows, targets = (_last(task, [pair[side] for pair in pairs]) for side in (0, 1))
    was, now = residuals(before, rows, targets), residuals([operator, *before], rows, targets)
    changes = sorted(
        zip((name for name, _ in pairs), was.tolist(), now.tolist(), strict=True), key=lambda e: e[1] - e[2]
    )
    listed = "; ".join(f"'{name}' {percent(a)} to {percent(b)}" for name, a, b in changes[:_SHOWN])
    return [f"Erased before, and their distance from their replacement before and after this edit: {listed}."]


def _size(eraser: Eraser) -> str:
    alike: dict[tuple[int, int], list[str]] = {}
    for stream, operator in eraser.context.items():
        alike.setdefault((operator.rank, operator.width), []).append(stream)
    parts = [f"operator of rank {rank} of {width} on {', '.join(own)}" for (rank, width), own in alike.items()]
    if eraser.adapters:
        parts.append(f"{len(eraser.adapters)} weights of the denoiser")
    if eraser.text_encoder:
        parts.append(f"{len(eraser.text_encoder)} weights of the text encoder")
    if eraser.modules:
        parts.append(f"{len(eraser.modules)} small networks beside layers of the denoiser")
    return ", ".join(parts)
