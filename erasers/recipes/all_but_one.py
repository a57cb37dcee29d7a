"""All but One, surgical concept erasing (Hong, Lee and Woo, AAAI 2024, arXiv 2312.12807), in a form of our own.

The paper changes the guidance term alone, S(concept) - S(null), holds the unconditional prediction against drift, and
lets the user choose an alternative a. No code is public, and the equations here are inferred from its abstract:

    L_guide = mse(S(concept) - sg[S(null)], T(a) - T(null)),    a the sentence with the replacement, or without it
    L_null  = mse(S(null), T(null))
    L       = L_guide + lambda L_null

The first term is about a difference, so moving the empty prompt's prediction does not satisfy it. Layers, rates and
lambda are ours as well, after ESD's. Where this fits the paper's figures, and where not, is not known.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..learn import settings as shared
from ..learn.full import Full
from ..learn.moment import ANCHOR, NULL, STILL, TEACHER
from ..learn.plan import Plan, Schedule
from ..learn.regress import Regress, same
from ..learn.scenes import concept_scenes
from ..learn.where import ALL, CROSS, KEYS_VALUES, NOT_CROSS, SELF
from ..spec import MethodSpec, Parameter, Value
from ..task import Task


class AllButOne:
    """Trains the concept's guidance term to be that of its replacement."""

    spec = MethodSpec(
        name="all_but_one",
        title="All but One",
        paper="Hong et al., All but One: Surgical Concept Erasing with Model Preservation in Text-to-Image Diffusion "
        "Models, AAAI 2024 (arXiv 2312.12807)",
        summary="Gives the concept's guidance its replacement's direction and holds the empty prompt's prediction; the "
        "form is inferred from the paper's abstract.",
        families=("demo",),
        parameters=(
            shared.where(CROSS, (CROSS, KEYS_VALUES, NOT_CROSS, SELF, ALL), "Not published; start with cross."),
            Parameter(
                "keep",
                1.0,
                "Weight of holding the empty prompt's prediction, against erasing, 0 to 100. Start at 1; not "
                "published. Too low lets concept and empty prompt drift together.",
                maximum=100.0,
                step=0.1,
            ),
            shared.templates(),
            shared.latents("Not published; start with kept."),
            shared.cfg(3.0),
            shared.sampling_steps(50),
            shared.trajectories(),
        ),
    )
    schedule = Schedule(steps=1000, rate=1e-5)
    small = Schedule(steps=60, rate=3e-4, batch=4)

    def plan(self, task: Task, settings: Mapping[str, Value]) -> Plan:
        scenes = concept_scenes(task, str(settings["templates"]))
        guidance = {(STILL, NULL): 1.0, (TEACHER, ANCHOR): 1.0, (TEACHER, NULL): -1.0}
        return Plan(
            parameters=Full(str(settings["sites"])),
            sources=(shared.rollout_of(settings, scenes),),
            terms=(Regress(guidance), same(NULL, float(settings["keep"]))),
        )


RECIPE = AllButOne()
