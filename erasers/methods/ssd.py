"""Selective Synaptic Dampening (Foster et al., AAAI 2024, arXiv 2308.07707): weights shrink that a concept needs more
than everything else does.

With the diagonal Fisher information I of each weight, the mean over batches of the squared gradient of a batch's mean
loss, on the concept (I_F) and on all data (I_D),

    W <- W min(1, lam I_D / I_F)    where I_F > alpha I_D

Published for classifiers; for denoisers ours: the loss is that of denoising pictures, which the untouched model draws
of the concept's names and of the preserved prompts; the latter stand for all data. Batches are of one size, as squared
gradients of batches depend on it, and both sides see the same times and noise. Nothing is trained.
Official code read, not copied: if-loops/selective-synaptic-dampening (MIT).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..algebra.hooks import gradients
from ..algebra.parameters import templates
from ..errors import NumericsError, SettingError
from ..learn.full import Full
from ..learn.moment import CONCEPT, Scene
from ..learn.pictures import Pictures
from ..learn.plan import Plan, Schedule
from ..learn.regress import Denoise
from ..learn.run import Run
from ..learn.scenes import concept_scenes, kept_scenes
from ..learn.where import ALL, CROSS, FEED_FORWARD, KEYS_VALUES, SELF
from ..provenance import recipe_of
from ..result import Eraser, WeightEdit
from ..spec import MethodSpec, Parameter, Value
from ..task import Task

_SPARSE = 3
"""A sparse edit takes this many times the room of a dense one for each weight that changes."""


class SSD:
    """Shrinks weights by how much more the concept's Fisher information is than that of the rest."""

    spec = MethodSpec(
        name="ssd",
        title="SSD",
        paper="Foster et al., Fast Machine Unlearning Without Retraining Through Selective Synaptic Dampening, "
        "AAAI 2024 (arXiv 2308.07707)",
        summary="Shrinks the weights that matter more for the concept than for what is preserved, without training.",
        families=(),
        parameters=(
            Parameter(
                "alpha",
                10.0,
                "How many times as much as for the rest a weight has to matter for the concept, 0.01 to 1000. Start at "
                "10; 5 and 50 were published too, all for classifiers. Lower erases more and harms more.",
                minimum=0.01,
                maximum=1000.0,
                step=0.1,
            ),
            Parameter(
                "lam",
                1.0,
                "How little is left of a weight, 0 to 10: that share of the ratio of what it matters for the rest and "
                "for the concept. Start at 1; 0.1 was published too. Lower erases more and harms more; 0 prunes.",
                maximum=10.0,
            ),
            Parameter(
                "sites",
                CROSS,
                "The layers whose weights may shrink: cross-attention (cross), its keys and values (cross-kv), "
                "self-attention (self), feed-forward (ff), everything (all). Ours: start with cross, since shrinking "
                "everything breaks pictures.",
                choices=(CROSS, KEYS_VALUES, SELF, FEED_FORWARD, ALL),
            ),
            templates("object"),
            Parameter(
                "pictures",
                32,
                "Pictures that are drawn of the concept, and as many of the preserved prompts, 1 to 10000. Start at "
                "32.",
                minimum=1,
                maximum=10000,
                unit="pictures",
            ),
            Parameter(
                "draws",
                8,
                "Noises and times at which each picture is looked at, 1 to 1000. Start at 8; more depend less on "
                "chance.",
                minimum=1,
                maximum=1000,
            ),
            Parameter(
                "batch", 4, "Pictures per gradient, 1 to 64, on both sides. Start at 4.", 1, 64, 1, advanced=True
            ),
            Parameter("steps", 20, "Sampling steps of the pictures, 1 to 200. Start at 20.", 1, 200, 1, unit="steps"),
            Parameter("cfg", 6.0, "Guidance of the pictures, 1 to 30. Start at the one you draw with.", 1.0, 30.0, 0.1),
            Parameter("seed", 0, "Seed of pictures, noises and times.", 0, 2**31 - 1, 1, advanced=True),
        ),
    )

    @torch.inference_mode(False)
    @torch.no_grad()
    def fit(self, task: Task, settings: Mapping[str, Value]) -> Eraser:
        """Draw pictures of both sides, measure what each weight matters for them, and shrink.

        Raises:
            ConceptError: nothing to erase, or a concept without tokens.
            FamilyError: the task has no model, or the model no such layers.
            SettingError: no weight matters alpha times as much for the concept.
            NumericsError: a gradient is not finite.
        """
        forget = fisher(task, concept_scenes(task, str(settings["templates"])), settings)
        every = fisher(task, kept_scenes(task), settings)
        edits, model, alpha = {}, task.loaded(), float(settings["alpha"])
        for name, own in forget.items():
            factor = damping(own, every[name], alpha, float(settings["lam"]))
            if bool((factor < 1).any()):
                edits[f"{name}.weight"] = damped(model.parameter(f"{name}.weight"), factor)
        if not edits:
            raise SettingError(
                f"No weight matters {alpha:g} times as much for the concept as for what is preserved.", "Lower alpha."
            )
        return Eraser(recipe_of(self.spec.name, settings, task, int(settings["seed"])), adapters=edits)


def fisher(task: Task, scenes: tuple[Scene, ...], settings: Mapping[str, Value]) -> dict[str, Tensor]:
    """The diagonal Fisher information of the denoising loss on pictures of scenes, `[o, i]` by layer.

    Args:
        settings: checked settings (`SSD.spec.settings({...})`), without alpha and lam.

    Raises:
        FamilyError: the task has no model, or the model no such layers.
        NumericsError: a gradient is not finite.
    """
    count, rows = int(settings["pictures"]), int(settings["batch"])
    pictures = Pictures(scenes, count=count, steps=int(settings["steps"]), cfg=float(settings["cfg"]))
    plan = Plan(Full(str(settings["sites"])), (pictures,), (Denoise(CONCEPT),))
    run = Run(task, plan, Schedule(0, 0.0, rows), int(settings["seed"]))
    leaves = {name: tensor.requires_grad_() for name, tensor in run.trainables.tensors.items()}
    sums = {name: torch.zeros_like(tensor, requires_grad=False) for name, tensor in leaves.items()}
    batches = max(1, count * int(settings["draws"]) // rows)
    with run.active():
        for _ in task.track(range(batches), batches):
            moment = run.draw()
            with gradients(run.model.in_place):
                (loss,) = run.losses(moment)
                found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
            for total, gradient in zip(sums.values(), found, strict=True):
                if gradient is not None:
                    total += gradient.square() / batches
    if not all(bool(torch.isfinite(total).all()) for total in sums.values()):
        raise NumericsError("A gradient of the denoising loss is not finite.", "Run the model in float32 or bfloat16.")
    return {name: total.cpu() for name, total in sums.items()}


def damping(forget: Tensor, every: Tensor, alpha: float, lam: float) -> Tensor:
    """The factor of each weight: `min(1, lam I_D / I_F)` where `I_F > alpha I_D`, else 1."""
    chosen = forget > alpha * every
    return torch.where(chosen, (lam * every / forget.where(chosen, 1.0)).clamp(max=1.0), 1.0)


def damped(weight: Tensor, factor: Tensor) -> WeightEdit:
    """The edit that multiplies a weight `[o, ...]` by factors `[o, i]`, in the smaller form."""
    delta = weight.reshape(factor.shape) * (factor - 1)
    places = (factor < 1).flatten().nonzero().flatten()
    if len(places) * _SPARSE < delta.numel():
        return WeightEdit(indices=places, values=delta.flatten()[places])
    return WeightEdit(dense=delta)


METHOD = SSD()
