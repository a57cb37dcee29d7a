"""LECO, low-rank erasing (a community tool by p1atdev, 2023; no paper): ESD's loss for an adapter, with named prompts.

    y = T(neutral) - eta [T(concept) - T(null)],    L = mse(S(concept), y)

on latents that are denoised under the concept up to a random level. Where no neutral prompt is named, it is the empty
one, and this is ESD (arXiv 2303.07345, eq. 7). With a plus in place of the first minus the concept is made stronger.

Differs from the official program: the neutral prompt is the concept's replacement, the "positive" prompt the concept
itself and the "unconditional" one empty; latents are at the very level that the model is told (there they are 19
timesteps cleaner), come from the untouched model and are used again (`latents` tells otherwise), and have the model's
own size instead of a random one; the choices of layers mean what they say, while there all but the whole select
nothing or everything.
Official code read, not copied: p1atdev/LECO (Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Mapping

from ..learn import settings as shared
from ..learn.moment import ANCHOR, CONCEPT, NULL
from ..learn.plan import ADAMW, Plan, Schedule
from ..learn.poles import pole_shift
from ..learn.regress import Regress
from ..learn.scenes import concept_scenes
from ..learn.where import ALL, BLOCKS, CROSS, NOT_CROSS, SELF
from ..spec import MethodSpec, Parameter, Value
from ..task import Task

WEAKEN, STRENGTHEN = "erase", "enhance"


class LECO:
    """Trains a low-rank adapter towards the negatively guided prediction."""

    spec = MethodSpec(
        name="leco",
        title="LECO",
        paper="p1atdev, LECO: Low-rank adaptation for Erasing COncepts from diffusion models, 2023 (code only)",
        summary="Teaches a small adapter to predict, for the concept, its replacement guided away from the concept.",
        families=("demo",),
        parameters=(
            shared.where(
                BLOCKS,
                (BLOCKS, ALL, CROSS, NOT_CROSS, SELF),
                "Published: blocks; its larger variant, which adds the residual blocks, is closest to all.",
            ),
            shared.eta(1.0, "1 as published"),
            Parameter(
                "neutral",
                shared.REPLACEMENT,
                "What the target starts from: the concept's replacement, or the empty prompt where it has none "
                "(replacement), or the empty prompt always (empty), which is published as the default.",
                choices=(shared.REPLACEMENT, shared.EMPTY),
            ),
            Parameter(
                "action",
                WEAKEN,
                "Whether the concept is made to go (erase) or to come more strongly (enhance). Start with erase.",
                choices=(WEAKEN, STRENGTHEN),
                advanced=True,
            ),
            shared.templates(),
            shared.latents("Published: fresh, student."),
            shared.cfg(3.0),
            shared.sampling_steps(50),
            shared.trajectories(),
            shared.form(shared.LOW_RANK),
        ),
    )
    schedule = Schedule(steps=500, rate=1e-4, rank=4, optimizer=ADAMW, decay=0.01)
    small = Schedule(steps=120, rate=1e-3, batch=4, rank=4, optimizer=ADAMW, decay=0.01)

    def plan(self, task: Task, settings: Mapping[str, Value]) -> Plan:
        scenes = concept_scenes(task, str(settings["templates"]))
        chosen = settings["neutral"] == shared.REPLACEMENT
        replaced = chosen and any(concept.replacement for concept in task.concepts.erase)
        by = float(settings["eta"]) * (1 if settings["action"] == STRENGTHEN else -1)
        return Plan(
            parameters=shared.parameters_of(settings),
            sources=(shared.rollout_of(settings, scenes),),
            terms=(Regress(pole_shift(ANCHOR if replaced else NULL, CONCEPT, NULL, by)),),
        )


RECIPE = LECO()
