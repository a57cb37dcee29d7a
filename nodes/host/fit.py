"""Fitting a method to what is on the canvas, and saying what came out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...erasers.concepts import ConceptList
from ...erasers.gates.discriminant import fit_gate, likenesses
from ...erasers.guard import Guard, Guarding
from ...erasers.measure.summary import summarise
from ...erasers.merging import Merge, Merged
from ...erasers.registry import Method
from ...erasers.result import Eraser
from ...erasers.sites import GUARDS, WORDS
from ...erasers.spec import Value
from ...erasers.stack import Stack
from ...erasers.task import Task
from ...erasers.words import WordPart
from .conditioning import encoder_fingerprint, text_encoder
from .guarding import install
from .model import HostModel
from .patcher import applied_erasers
from .pictures import encode_pictures
from .runtime import LOG, grams
from .sight import HostSight
from .sites import model_sites


def fit_eraser(
    method: Method,
    settings: Mapping[str, Value],
    model: ModelPatcher,
    clip: Any,
    concepts: ConceptList,
    pooled: bool = False,
    vae: Any = None,
    vision: Any = None,
) -> tuple[Eraser, str]:
    """Fit `method` outside inference mode, where gradients are possible; the model stays as it is.

    Returns:
        The eraser, and a summary of what it does to erased, preserved and earlier erased prompts.
    """
    with torch.inference_mode(False), torch.no_grad():
        task = task_of(model, clip, concepts, pooled, vae, vision)
        eraser = method.fit(task, settings)
        return eraser, summarise(eraser, task)


def guard_model(
    guard: Guard,
    settings: Mapping[str, Value],
    model: ModelPatcher,
    clip: Any,
    concepts: ConceptList,
    gate: float,
    vae: Any = None,
    pictures: Tensor | None = None,
) -> tuple[ModelPatcher, Any, str]:
    """Clones of a MODEL and its CLIP that carry a guard, and what is to be known of it.

    Args:
        gate: likeness to the concept from which on a prompt is guarded; 0 for every prompt.
        pictures: `[n, h, w, 3]` in 0..1, of the concept; need `vae`.
    """
    model_sites(model).family.require(GUARDS)
    with torch.inference_mode(False), torch.no_grad():
        task = task_of(model, clip, concepts)
        if pictures is not None:
            task = replace(task, pictures=encode_pictures(task.loaded(), vae, pictures))
        plan, fitted = guard.plan(task, settings), fit_gate(task, gate)
        guarded = install(model, clip, guard.spec.title, plan, fitted if gate else None)
        return *guarded, f"{guard.spec.title}: {guard.spec.summary}\nNeeds: {guard.needs}\n\n{likenesses(fitted, task)}"


def reweight(
    model: ModelPatcher, clip: Any, words: tuple[tuple[str, float], ...], **given: Any
) -> tuple[ModelPatcher, Any]:
    """Clones of a MODEL and its CLIP that weigh words as told (`WordPart`).

    Raises:
        FamilyError: the model has more than one text encoder, or no cross-attention.
    """
    model_sites(model).family.require(WORDS)
    part = WordPart(HostModel(model, clip).tower(), words, **given)
    return install(model, clip, "Reweight Attention", Guarding(words=part, reader=part), None)


def merge_stack(
    merge: Merge, settings: Mapping[str, Value], stack: Stack, model: ModelPatcher | None, clip: Any
) -> Merged:
    """Merge a stack, on a model where both it and its text encoder are given; the model stays as it is."""
    with torch.inference_mode(False), torch.no_grad():
        task = None if model is None or clip is None else task_of(model, clip, stack.concepts())
        return merge.merge(stack, task, settings)


def task_of(
    model: ModelPatcher, clip: Any, concepts: ConceptList, pooled: bool = False, vae: Any = None, vision: Any = None
) -> Task:
    """A task on a MODEL and its CLIP; not in inference mode, where gradients are wanted."""
    host = HostModel(model, clip)
    family = host.found.family
    return Task(
        concepts,
        family,
        encoder_fingerprint(clip),
        text_encoder(clip, family),
        model=host,
        grams=grams(),
        earlier=tuple(entry.eraser for entry in applied_erasers(model)),
        pooled=pooled,
        sight=HostSight(host, vae, vision) if vae is not None and vision is not None else None,
    )


def warn_of_other_encoder(eraser: Eraser, clip: Any) -> None:
    """Say in the log when an eraser was fitted on another text encoder than `clip`."""
    if eraser.recipe.encoder != encoder_fingerprint(clip):
        LOG.warning("This eraser was fitted on another text encoder of the same kind; check its effect.")
