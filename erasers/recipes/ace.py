"""ACE, Anti-Editing Concept Erasure (Wang et al., 2025, arXiv 2501.01633).

With D(p) = T(p) - T(null), the concept's bare name n, a sentence c with it, and m anchors a drawn from the preserved
prompts at each step:

    L_null = mse(S(null), T(null) + eta D(n) - eta sum_j w_j D(a_j))
    L_cond = mse(S(c), T(r) - eta [T(c) - T(r)])
    L_keep = mse(S(a_j), T(a_j))
    L      = (1 - p) [q L_null + (1 - q) L_cond] + p L_keep

Guided sampling subtracts the empty prompt's prediction. So that prediction moves towards the concept: guidance then
leads away from it, for prompts that do not name it too, as those of an editor. The anchors are a stochastic
correction; without them every prompt would be led away from all that is like the concept.

Differs from the official program: beside the bare name, which it has for c as well, sentences are trained
(`templates`), and r is the same sentence with the replacement (`neutral`; empty, as published, leads away from all its
other words); latents are at the very level that the model is told, come from the untouched model and are used again
(`latents` tells otherwise); weights w_j by likeness are taken from text features, there from pictures; anchors are
drawn independently, so that two of a step may be the same; q is 0.5, not 0.99 (`null_share`). The extra term on latents
of the anchors is not here. The eraser has to act on both sides of the guidance, and does nothing where there is none.
Official code read, not copied: 120L020904/ACE (no licence).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..algebra.context import TEMPLATES
from ..errors import ConceptError
from ..learn import settings as shared
from ..learn.anti_edit import AntiEdit
from ..learn.drawn import Drawn, drawn_roles
from ..learn.low_rank import LowRank
from ..learn.moment import ANCHOR, CONCEPT, NAME, NULL, Scene
from ..learn.plan import COSINE, Plan, Schedule
from ..learn.regress import same
from ..learn.scenes import concept_scenes, filled, held_prompts
from ..learn.where import ALL, BLOCKS, CROSS, NOT_CROSS
from ..spec import MethodSpec, Parameter, Value
from ..task import Task

EVEN, ALIKE, REPLACEMENT = "even", "alike", "replacement"
_BARE = "bare replacement"


class ACE:
    """Trains the empty prompt's prediction along with the concept's."""

    spec = MethodSpec(
        name="ace",
        title="ACE",
        paper="Wang et al., ACE: Anti-Editing Concept Erasure in Text-to-Image Models, 2025 (arXiv 2501.01633)",
        summary="Teaches an adapter to lean the empty prompt towards the concept, so that guidance leads away from it.",
        families=("demo",),
        parameters=(
            shared.where(BLOCKS, (BLOCKS, ALL, CROSS, NOT_CROSS), "Published: blocks."),
            shared.eta(3.0, "3 as published"),
            Parameter(
                "correction",
                EVEN,
                "What the empty prompt leans away from in turn: the preserved prompts, all alike (even; as published), "
                "or each by the likeness of its text to the concept's (alike), or the concept's replacement instead "
                "(replacement). Start with even.",
                choices=(EVEN, ALIKE, REPLACEMENT),
            ),
            Parameter(
                "keep",
                0.8,
                "Share of keeping the preserved prompts in the loss, 0 to 1. Start at 0.8, as published.",
            ),
            Parameter(
                "null_share",
                0.5,
                "Share of the empty prompt in the rest of the loss, 0 to 1; what is left is the concept's own. Start "
                "at 0.5; the official program's own default is 0.8, its published command has 0.99.",
            ),
            Parameter(
                "anchors",
                2,
                "Preserved prompts that are drawn at each step, 1 to 16; 2 as published. Each adds to the correction.",
                minimum=1,
                maximum=16,
                step=1,
                advanced=True,
            ),
            shared.templates(),
            shared.latents("Published: fresh, student."),
            shared.cfg(3.0),
            shared.sampling_steps(30),
            shared.trajectories(),
            shared.neutral(),
        ),
    )
    schedule = Schedule(steps=1500, rate=1e-3, rank=4)
    small = Schedule(steps=300, rate=1e-2, batch=4, rank=4, course=COSINE)

    def plan(self, task: Task, settings: Mapping[str, Value]) -> Plan:
        scenes = _scenes(task, TEMPLATES[str(settings["templates"])])
        prompts = tuple(prompt for prompt in held_prompts(task) if prompt)
        if not prompts:
            raise ConceptError(
                "ACE has no prompts to keep; the empty one is what it changes.", "Preserve some prompts or a list."
            )
        eta, p, q = (float(settings[name]) for name in ("eta", "keep", "null_share"))
        roles = drawn_roles(int(settings["anchors"]))
        against = (_BARE,) if settings["correction"] == REPLACEMENT else roles
        fixed = {NAME, shared.neutral_role(settings), *against} - {NULL, *roles}
        return Plan(
            parameters=LowRank(str(settings["sites"])),
            sources=(replace(shared.rollout_of(settings, scenes), looked=tuple(sorted(fixed))),),
            terms=(
                AntiEdit(eta, eta, against, settings["correction"] == ALIKE, NAME, weight=(1 - p) * q),
                shared.guidance_of(settings, weight=(1 - p) * (1 - q)),
                *(same(role, p / len(roles)) for role in roles),
            ),
            makers={role: Drawn(prompts) for role in roles},
        )


def _scenes(task: Task, frames: Sequence[str]) -> tuple[Scene, ...]:
    """Every name of every concept in every frame, its replacement in the same frame, and both bare.

    The empty prompt leans towards the bare name, whose prediction is the concept's alone: a sentence's is that of its
    other words as well, of which each sentence has others.
    """
    named = concept_scenes(task, "none")
    return tuple(
        {**own, CONCEPT: frame.format(own[CONCEPT]), ANCHOR: filled(frame, own[ANCHOR]), _BARE: own[ANCHOR]}
        for own in named
        for frame in frames
    )


RECIPE = ACE()
