"""Concept Sliders (Gandikota et al., ECCV 2024, arXiv 2311.12092), from prompts or from pairs of pictures.

From prompts:

    y = T(neutral) - eta [T(pole) - T(opposite)],    L = mse(S(target), y)

The pole is the concept, the opposite pole its replacement, and the neutral prompt what a sentence (`templates`) says
without either: with "photo of {}" it is "photo of", with no sentence the empty prompt. The target is the neutral
prompt, so that the whole model moves away from the pole, or the concept itself. For attributes to preserve, each is
set before all prompts of a scene: "blue ball" against "blue box" moves the shape and not the colour. The published
slider has a strength of either sign; what is trained here is its weakening side.

From pairs of pictures (`learn_from`), x with the concept and x' the same without it, under the same noise, with S_s
the student at strength s of its adapter:

    L = mse(S_-1(x, pole), noise) + mse(S_+1(x', target), noise)

so that the adapter draws what the second pictures show, and turned round what the first do. The user's pictures are
the first of every pair and then, in the same order, the second.

Differs from the official program: latents are at the very level that the model is told (there they are 19 timesteps
cleaner), come from the untouched model and are used again (`latents` tells otherwise), and have the model's own
size; adapters start as torch starts linear layers, narrower by the square root of 3. Pairs have one strength (there
several, each with a folder of pictures), keep the size they come in (there 256 pixels), and their noise is not one of
31 seeds. The restored norm of its script for Flux is not here.
Official code read, not copied: rohitgandikota/sliders (MIT).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ..learn import settings as shared
from ..learn.low_rank import LowRank
from ..learn.moment import ANCHOR, CONCEPT, Scene
from ..learn.pairs import GONE, SHOWN, Pairs, pairs_of
from ..learn.plan import ADAMW, ERASE, Plan, Schedule
from ..learn.poles import NEUTRAL, pole_scenes, pole_shift
from ..learn.regress import Denoise, Regress
from ..learn.strength import AtStrength
from ..learn.where import ALL, BLOCKS, CROSS, NOT_CROSS, SELF
from ..spec import MethodSpec, Parameter, Value
from ..task import Task

TARGETS = {"neutral": NEUTRAL, "concept": CONCEPT}
PROMPTS, PAIRS = "prompts", "pairs"
_STEPS = 50


def inner(count: int, generator: torch.Generator) -> Tensor:
    """The times of pairs: those of 50 steps of sampling, without the first and the last."""
    return torch.randint(1, _STEPS - 1, (count,), generator=generator) / _STEPS


class Sliders:
    """Trains a low-rank adapter along the difference of two poles."""

    spec = MethodSpec(
        name="sliders",
        title="Concept Sliders",
        paper="Gandikota et al., Concept Sliders: LoRA Adaptors for Precise Control in Diffusion Models, ECCV 2024 "
        "(arXiv 2311.12092)",
        summary="Teaches a small adapter to move from one pole, the concept, towards the opposite, its replacement.",
        families=("demo",),
        parameters=(
            shared.where(
                NOT_CROSS,
                (NOT_CROSS, CROSS, SELF, BLOCKS, ALL),
                "Published: not-cross, so that the slider moves what is seen and not what words mean.",
            ),
            shared.eta(4.0, "4 as published (there called guidance scale)"),
            Parameter(
                "target",
                "neutral",
                "Whose prediction is moved: that of the sentence without the concept, which moves every picture "
                "(neutral; as published), or the concept's own (concept). The concept is the pole to weaken, its "
                "replacement the opposite pole, or the sentence without the concept where it has none.",
                choices=tuple(TARGETS),
            ),
            Parameter(
                "attributes",
                False,
                "Set each of the user's preserved prompts, but not those of lists, before all prompts, as an "
                "attribute that the slider must not move, such as 'blue' for a shape. Start with off.",
            ),
            shared.templates(),
            shared.latents("Published: fresh, student."),
            shared.cfg(3.0),
            shared.sampling_steps(50),
            shared.trajectories(),
            Parameter(
                "learn_from",
                PROMPTS,
                "What tells the poles apart: what the model makes of their prompts (prompts), or the user's pictures "
                "(pairs): first all that show the concept, then as many that show the same without it, in the same "
                "order. Of the other settings, pairs read sites, target, attributes and templates. Start with prompts.",
                choices=(PROMPTS, PAIRS),
            ),
        ),
    )
    schedule = Schedule(steps=1000, rate=2e-4, rank=4, optimizer=ADAMW, decay=0.01)
    small = Schedule(steps=100, rate=2e-3, batch=4, rank=4, optimizer=ADAMW, decay=0.01)

    def plan(self, task: Task, settings: Mapping[str, Value]) -> Plan:
        attributes = task.concepts.preserve if settings["attributes"] else ()
        scenes = pole_scenes(task, str(settings["templates"]), attributes)
        target = TARGETS[str(settings["target"])]
        if settings["learn_from"] == PAIRS:
            return self._of_pairs(task, str(settings["sites"]), scenes, target)
        # The opposite pole takes the empty prompt's place in the guidance, as published.
        rollout = replace(shared.rollout_of(settings, scenes), role=target, against=ANCHOR)
        return Plan(
            parameters=LowRank(str(settings["sites"])),
            sources=(rollout,),
            terms=(Regress(pole_shift(NEUTRAL, CONCEPT, ANCHOR, -float(settings["eta"])), target),),
        )

    def _of_pairs(self, task: Task, sites: str, scenes: tuple[Scene, ...], target: str) -> Plan:
        pairs_of(task)  # For its checks, before any training.
        shown, gone = Denoise(CONCEPT, SHOWN, aim=ERASE), Denoise(target, GONE, aim=ERASE)
        return Plan(LowRank(sites), (Pairs(scenes, inner),), (gone, AtStrength(shown, -1.0)))


RECIPE = Sliders()
