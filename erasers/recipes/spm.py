"""SPM, semi-permeable membrane (Lyu et al., CVPR 2024, arXiv 2312.16145): its one-dimensional adapters.

    L_erase = mse(S(concept), T(n) - eta [T(concept) - T(n)]),    n the sentence with the replacement, or without it
    L_keep  = mse(S(e), T(e)) at the same latents, for random text features e (learn/shell.py)
    L       = L_erase + lambda L_keep

The published strength of an adapter depends on the prompt ("facilitated transport"): it is the larger of the cosine
of the prompt's text features to the concept's and the share of the concept's tokens that the prompt holds. That gate
is not part of training. What it needs is in the eraser: the concepts' names, and rank-1 factors of their own layers.
Without it these are ordinary adapters, with more side effects. Several concepts in one training share their adapters;
train them one by one where each is to have a gate of its own.

Differs from the official program: there half of the anchors are the empty prompt, by the way they are laid out
(`hold_null`); latents are at the very level that the model is told (there they are 42 timesteps cleaner), come from
the untouched model and are used again (`latents` tells otherwise), and have the model's own size instead of a random
one; AdamW keeps its state in 32 bits, which for factors this small saves nothing to give up.
Official code read, not copied: Con6924/SPM (Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Mapping

from ..learn import settings as shared
from ..learn.low_rank import LowRank
from ..learn.moment import ANCHOR, NULL
from ..learn.plan import ADAMW, RESTARTS, Plan, Schedule
from ..learn.regress import negative_guidance, same
from ..learn.scenes import concept_scenes
from ..learn.shell import Shell, shell_roles
from ..learn.where import ALL, BLOCKS, CROSS, NOT_CROSS
from ..spec import MethodSpec, Parameter, Value
from ..task import Task


class SPM:
    """Trains rank-1 adapters that random text features pass unchanged."""

    spec = MethodSpec(
        name="spm",
        title="SPM",
        paper="Lyu et al., One-dimensional Adapter to Rule Them All, CVPR 2024 (arXiv 2312.16145)",
        summary="Teaches thin adapters to guide away from the concept, and to leave random text features as they are.",
        families=("demo",),
        parameters=(
            shared.where(BLOCKS, (BLOCKS, ALL, CROSS, NOT_CROSS), "Published: blocks."),
            shared.eta(1.0, "1 as published"),
            Parameter(
                "keep",
                1000.0,
                "Weight of keeping random text features as they are, against erasing, 0 to 10000. Start at 1000, as "
                "published; lower erases faster and spills over more.",
                maximum=10_000.0,
                step=1.0,
            ),
            Parameter(
                "anchors",
                4,
                "Random text features that are held at each step, 1 to 64; 4 as published.",
                minimum=1,
                maximum=64,
                step=1,
                advanced=True,
            ),
            Parameter(
                "hold_null",
                False,
                "Give half of the anchors' weight to the empty prompt, as the published program does. Start with off.",
                advanced=True,
            ),
            shared.templates(),
            shared.latents("Published: fresh, student."),
            shared.cfg(3.0),
            shared.sampling_steps(30),
            shared.trajectories(),
        ),
    )
    schedule = Schedule(steps=3000, rate=1e-4, optimizer=ADAMW, decay=0.01, course=RESTARTS, warmup=500)
    small = Schedule(steps=200, rate=3e-3, batch=4, optimizer=ADAMW, decay=0.01, course=RESTARTS, warmup=25)

    def plan(self, task: Task, settings: Mapping[str, Value]) -> Plan:
        scenes = concept_scenes(task, str(settings["templates"]))
        roles, keep = shell_roles(int(settings["anchors"])), float(settings["keep"])
        kept = [same(NULL, keep / 2)] if settings["hold_null"] else []
        share = (keep - sum(term.weight for term in kept)) / len(roles)
        return Plan(
            parameters=LowRank(str(settings["sites"])),
            sources=(shared.rollout_of(settings, scenes),),
            terms=(
                negative_guidance(float(settings["eta"]), null=ANCHOR),
                *kept,
                *(same(role, share) for role in roles),
            ),
            makers={role: Shell() for role in roles},
        )


RECIPE = SPM()
