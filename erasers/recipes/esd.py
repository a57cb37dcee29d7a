"""ESD, Erased Stable Diffusion (Gandikota et al., ICCV 2023, arXiv 2303.07345).

The student's prediction for the concept becomes the teacher's, guided away from the concept (eq. 7 there):

    y = T(null) - eta [T(concept) - T(null)],    L = mse(S(concept), y)

on latents that are denoised under the concept up to a random level. `x` trains the cross-attention, `u` everything
else, `self` the self-attention. Beside whole differences of weights this trains, as no published program does, one map
of the text features that all layers share (`form`).

Differs from the official programs: latents are at the very level that the model is told, which in the first one they
are not; they come from the untouched model and are used again (`latents` tells otherwise); prompts are sentences with
the concept's names (`templates`), not the bare name, and in place of null stands the sentence with the replacement, or
without the concept (`neutral`): the empty prompt would lead away from all its other words, too. For the bare name of a
concept without a replacement the equation is the paper's. Biases and norms are not trained. The later official program
calls 1 + eta what is eta here and in the paper.
Official code read, not copied: rohitgandikota/erasing (MIT).
"""

from __future__ import annotations

from collections.abc import Mapping

from ..learn import settings as shared
from ..learn.plan import COSINE, Plan, Schedule
from ..learn.scenes import concept_scenes
from ..learn.where import ALL, CROSS, KEYS_VALUES, NOT_CROSS, SELF
from ..spec import MethodSpec, Value
from ..task import Task


class ESD:
    """Trains towards the negatively guided prediction."""

    spec = MethodSpec(
        name="esd",
        title="ESD",
        paper="Gandikota et al., Erasing Concepts from Diffusion Models, ICCV 2023 (arXiv 2303.07345)",
        summary="Teaches the model to predict, for the concept, what it predicts when guided away from it.",
        families=("demo",),
        parameters=(
            shared.where(
                CROSS,
                (CROSS, NOT_CROSS, SELF, KEYS_VALUES, ALL),
                "ESD-x is cross, for what is called by name; ESD-u is not-cross, for what also comes unnamed.",
            ),
            shared.eta(1.0, "1 as published (its later program calls that 2)"),
            shared.templates(),
            shared.latents("Published: fresh, student."),
            shared.cfg(3.0),
            shared.sampling_steps(50),
            shared.trajectories(),
            shared.form(shared.FULL),
            shared.neutral(),
        ),
    )
    schedule = Schedule(steps=1000, rate=1e-5, rank=16)
    small = Schedule(steps=150, rate=6e-4, batch=4, rank=16, course=COSINE)

    def plan(self, task: Task, settings: Mapping[str, Value]) -> Plan:
        scenes = concept_scenes(task, str(settings["templates"]))
        return Plan(
            parameters=shared.parameters_of(settings),
            sources=(shared.rollout_of(settings, scenes),),
            terms=(shared.guidance_of(settings),),
        )


RECIPE = ESD()
