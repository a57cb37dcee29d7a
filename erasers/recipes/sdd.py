"""SDD, safe self-distillation (Kim et al., 2023, arXiv 2307.05977).

    L = mse(S(concept), sg[S(null)])

on latents that are denoised under the concept; the result is a moving average of what is trained. The target is the
student's own prediction for the empty prompt, which is not held to what it was.

Differs from the official program: latents are at the very level that the model is told; they are the untouched model's
and are used again, where there the moving average rolls them out anew (`latents`); with several concepts each row is
rolled out under its own, there all are under one joined prompt.
Official code read, not copied: nannullna/safe-diffusion (no licence).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ..learn import settings as shared
from ..learn.full import Full
from ..learn.moment import AVERAGE, NULL, STILL
from ..learn.plan import ADAMW, Plan, Schedule
from ..learn.regress import Regress
from ..learn.scenes import concept_scenes
from ..learn.where import ALL, CROSS, KEYS_VALUES, NOT_CROSS, SELF
from ..spec import MethodSpec, Value
from ..task import Task


class SDD:
    """Distils the empty prompt's prediction into the concept's."""

    spec = MethodSpec(
        name="sdd",
        title="SDD",
        paper="Kim et al., Towards Safe Self-Distillation of Internet-Scale Text-to-Image Diffusion Models, 2023 "
        "(arXiv 2307.05977)",
        summary="Teaches the model to predict, for the concept, what it predicts for the empty prompt.",
        families=("demo",),
        parameters=(
            shared.where(
                CROSS, (CROSS, KEYS_VALUES, SELF, NOT_CROSS, ALL), "Published: cross, and self or not-cross as options."
            ),
            shared.templates(),
            shared.averaged_latents(),
            shared.cfg(3.0),
            shared.sampling_steps(50),
            shared.trajectories(),
        ),
    )
    schedule = Schedule(steps=1500, rate=1e-5, optimizer=ADAMW, decay=1e-4, clip=1.0, average=0.999)
    # An average that looks back a thousand steps would hardly have moved in so short a training.
    small = Schedule(steps=60, rate=3e-4, batch=4, optimizer=ADAMW, decay=1e-4, clip=1.0, average=0.9)

    def plan(self, task: Task, settings: Mapping[str, Value]) -> Plan:
        rollout = shared.rollout_of(settings, concept_scenes(task, str(settings["templates"])))
        if settings["latents"] == shared.FRESH_AVERAGE:
            rollout = replace(rollout, who=AVERAGE)
        return Plan(
            parameters=Full(str(settings["sites"])),
            sources=(rollout,),
            terms=(Regress({(STILL, NULL): 1.0}),),
        )


RECIPE = SDD()
