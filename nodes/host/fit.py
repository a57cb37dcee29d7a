"""Fitting a method to what is on the canvas, and saying what came out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...erasers.concepts import ConceptList
from ...erasers.errors import FamilyError
from ...erasers.gates.discriminant import fit_gate, likenesses
from ...erasers.guard import Guard, Guarding, check_family
from ...erasers.measure.summary import summarise
from ...erasers.merging import Merge, Merged
from ...erasers.model import TextTower
from ...erasers.registry import Method
from ...erasers.result import Eraser
from ...erasers.sites import GUARDS, WORDS, Family, Further
from ...erasers.spec import Value
from ...erasers.stack import Stack
from ...erasers.store.preserve_cache import PreserveCache
from ...erasers.streams import fit_streams
from ...erasers.task import Encode, Task
from ...erasers.words import BLOCKS, WordPart
from .conditioning import encoder_fingerprint, further_encoder, text_encoder
from .guarding import install
from .model import HostModel
from .ordinary import ordinary
from .patcher import applied_erasers
from .pictures import encode_pictures
from .runtime import LOG, each, grams
from .sight import HostSight
from .sites import model_sites
from .towers import PromptTower


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
    with ordinary(model, clip):
        task = task_of(model, clip, concepts, pooled, vae, vision)
        check_family(method.spec, task.family)
        eraser = fit_streams(method, task, settings)
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
    mask: Tensor | None = None,
) -> tuple[ModelPatcher, Any, str]:
    """Clones of a MODEL and its CLIP that carry a guard, and what is to be known of it.

    Args:
        gate: likeness to the concept from which on a prompt is guarded; 0 for every prompt.
        pictures: `[n, h, w, 3]` in 0..1, of the concept; need `vae`.
        mask: `[1, h, w]` in 0..1, of what is to go.
    """
    family = model_sites(model).family
    family.require(GUARDS)
    check_family(guard.spec, family)
    with ordinary(model, clip):
        task = task_of(model, clip, concepts)
        task = replace(task, texts=_texts(clip, family, task.encode), regions=mask)
        if pictures is not None:
            task = replace(task, pictures=encode_pictures(task.loaded(), vae, pictures))
        plan, fitted = guard.plan(task, settings), fit_gate(task, gate)
        guarded = install(model, clip, guard.spec.title, plan, fitted if gate else None, family)
        return *guarded, f"{guard.spec.title}: {guard.spec.summary}\nNeeds: {guard.needs}\n\n{likenesses(fitted, task)}"


def reweight(
    model: ModelPatcher, clip: Any, words: tuple[tuple[str, float], ...], **given: Any
) -> tuple[ModelPatcher, Any]:
    """Clones of a MODEL and its CLIP that weigh words as told (`WordPart`).

    Raises:
        FamilyError: nothing can reach the words in the model's attention, or it has no such blocks.
    """
    family = model_sites(model).family
    family.require(WORDS)
    part = WordPart(_texts(clip, family, text_encoder(clip, family)) or HostModel(model, clip).tower(), words, **given)
    if not family.is_unet and part.blocks != BLOCKS:
        raise FamilyError(
            f"{family.title} has no input, middle and output blocks, as it is no UNet.", "Set blocks to all."
        )
    return install(model, clip, "Reweight Attention", Guarding(words=part, reader=part), None, family)


def merge_stack(
    merge: Merge, settings: Mapping[str, Value], stack: Stack, model: ModelPatcher | None, clip: Any
) -> Merged:
    """Merge a stack, on a model where both it and its text encoder are given; the model stays as it is."""
    with ordinary(model, clip):
        task = None if model is None or clip is None else task_of(model, clip, stack.concepts())
        return merge.merge(stack, task, settings)


def task_of(
    model: ModelPatcher, clip: Any, concepts: ConceptList, pooled: bool = False, vae: Any = None, vision: Any = None
) -> Task:
    """A task on a MODEL and its CLIP; not in inference mode, where gradients are wanted."""
    host = HostModel(model, clip)
    family = host.found.family
    task = Task(
        concepts,
        family,
        encoder_fingerprint(clip),
        text_encoder(clip, family),
        model=host,
        grams=grams(),
        earlier=tuple(entry.eraser for entry in applied_erasers(model)),
        pooled=pooled,
        sight=HostSight(host, vae, vision) if vae is not None and vision is not None else None,
        track=each,
    )
    return replace(task, further=tuple(_seen_by(task, own, model, clip) for own in host.found.further))


def _seen_by(task: Task, own: Further, model: ModelPatcher, clip: Any) -> Task:
    """A task on a model's further features, as if they were all that it reads."""
    return replace(
        task,
        family=task.family.seen_by(own),
        encoder=f"{task.encoder} {own.stream}",
        encode=further_encoder(clip, task.family, own, task.encode),
        model=HostModel(model, clip, stream=own.stream),
        # There may be dozens of streams, whose matrices would drive all others from the disk.
        grams=PreserveCache(room=2),
        pooled=False,
        sight=None,
    )


def _texts(clip: Any, family: Family, encode: Encode) -> TextTower | None:
    """A CLIP's text encoders as one; None where there is one CLIP encoder alone.

    Raises:
        ConceptError: the CLIP is another family's.
    """
    if family.is_plain:
        return None
    encode([""])
    return PromptTower.of(clip, family, encode)


def warn_of_other_encoder(eraser: Eraser, clip: Any) -> None:
    """Say in the log when an eraser was fitted on another text encoder than `clip`."""
    if eraser.recipe.encoder != encoder_fingerprint(clip):
        LOG.warning("This eraser was fitted on another text encoder of the same kind; check its effect.")
