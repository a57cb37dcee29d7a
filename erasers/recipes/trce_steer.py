"""TRCE, stage 2 (Chen et al., ICCV 2025, arXiv 2503.07389): early denoising is steered away from the concept.

Text features pass stage 1 first (the closed-form method `trce`; learn/started.py). Behind it self-attention and the
queries of cross-attention are trained on latents of the untouched model's trajectories under the concept, from their
first half. For the concept n and what replaces it s, with stage 1 T1:

    y+ = T(s) + g [T(s) - T(null)],   y- = T(n) + g [T(n) - T(null)]
    h(p) = relu( mse(S(p), y+) - mse(S(p), y-) + m )
    L = [h(n) + h(null)] / 2 + lambda mse(S(null), T1(null))

where the last part has latents of trajectories without a prompt.

Differs from the official program: gradients are cleared at every step, where the program adds up those of all steps;
latents are at the very level that the model is told, not one step further; those of the last part are told their own
time; and the last part has as many latents as the first, not four times as many. So its learning rate, 1e-6, is for
sums of gradients and has to be found anew. Prompts are sentences with the concept and its replacement, not pairs that
somebody wrote.
Official code read, not copied: ddgoodgood/TRCE (no licence stated).
"""

from __future__ import annotations

from collections.abc import Mapping

from ..learn import settings as shared
from ..learn.full import Full
from ..learn.hinge import Hinge
from ..learn.moment import ANCHOR, CONCEPT, MAIN, NULL, TEACHER
from ..learn.plan import ADAMW, KEEP, Plan, Schedule
from ..learn.regress import Regress
from ..learn.rollout import Rollout
from ..learn.scenes import concept_scenes, scene
from ..learn.started import Started, StartFeatures, fitted
from ..learn.where import SELF_AND_QUERY
from ..spec import MethodSpec, Parameter, Value
from ..task import Task

STARTED_NULL = "null after stage 1"
"""Role of the empty prompt as stage 1 leaves it."""
UNPROMPTED = "unprompted"
"""Latents of trajectories without a prompt."""


class TRCESteer:
    """Steers trajectories behind TRCE's first stage."""

    spec = MethodSpec(
        name="trce_steer",
        title="TRCE (both stages)",
        paper="Chen et al., TRCE: Towards Reliable Malicious Concept Erasure, ICCV 2025 (arXiv 2503.07389)",
        summary="Maps the concept's end token away in closed form, then steers early denoising to its replacement.",
        families=("demo",),
        parameters=(
            Parameter(
                "guidance",
                15.0,
                "Guidance g of the two targets beyond the prompt itself, 0 to 30; 15 as published. Higher sets them "
                "further apart.",
                maximum=30.0,
                step=0.5,
            ),
            Parameter(
                "margin",
                0.01,
                "By how much predictions shall be nearer to the replacement than to the concept, as a mean squared "
                "difference, 0 to 100; 0.01 as published. Higher erases on.",
                maximum=100.0,
                step=0.001,
            ),
            Parameter(
                "keep_weight",
                100.0,
                "Weight of staying as stage 1 is where there is no prompt, 0 to 100000; 100 as published.",
                maximum=100000.0,
                step=1.0,
            ),
            Parameter(
                "early",
                0.52,
                "Share of the trajectory, from its noisy end, that is steered, 0.05 to 1; 0.52 as published.",
                minimum=0.05,
                advanced=True,
            ),
            shared.templates(published="pairs of sentences that somebody wrote"),
            shared.cfg(3.0),
            shared.sampling_steps(50),
            shared.trajectories(),
        ),
    )
    schedule = Schedule(steps=300, rate=1e-6, optimizer=ADAMW, decay=0.01)
    small = Schedule(steps=60, rate=3e-4, batch=4, optimizer=ADAMW, decay=0.01)

    def plan(self, task: Task, settings: Mapping[str, Value]) -> Plan:
        scenes = concept_scenes(task, str(settings["templates"]))
        start = fitted(task, "trce", {"templates": settings["templates"]})
        cfg, steps, kept = float(settings["cfg"]), int(settings["sampling_steps"]), int(settings["trajectories"])
        g, margin, weight = (float(settings[name]) for name in ("guidance", "margin", "keep_weight"))
        prefer = {(TEACHER, ANCHOR): 1 + g, (TEACHER, NULL): -g}
        reject = {(TEACHER, CONCEPT): 1 + g, (TEACHER, NULL): -g}
        return Plan(
            parameters=Started(start, Full(SELF_AND_QUERY)),
            sources=(
                Rollout(scenes, cfg, steps, kept=kept, zones={MAIN: (0.0, float(settings["early"]))}),
                Rollout((scene(""),), 1.0, steps, role=NULL, kept=kept, zones={UNPROMPTED: (0.0, 1.0)}),
            ),
            terms=(
                *(Hinge(prefer, reject, role, margin, weight=0.5) for role in (CONCEPT, NULL)),
                Regress({(TEACHER, STARTED_NULL): 1.0}, NULL, UNPROMPTED, weight, KEEP),
            ),
            makers={STARTED_NULL: StartFeatures(start, "", UNPROMPTED)},
        )


RECIPE = TRCESteer()
