"""Learned: how much of each eraser of a stack acts in each block, from a few prompts (aTLAS, Zhang et al., NeurIPS
2024, arXiv 2407.02880). The weighing stands in learn/coefficients.py; the loss pulls names c to what the untouched
model T sees for their replacement r, or guided away from them as in ESD (Gandikota et al., ICCV 2023, arXiv
2303.07345), and prompts p to preserve to what it sees for themselves:

    L = |S(c) - (T(r) - eta [T(c) - T(r)])|^2 + keep |S(p) - T(p)|^2 + near |lambda - 1|^2

Differs from the paper: there coefficients start at 0 and are unbound; here they start at the stack's own strengths and
stay within -1 and 2, as few prompts are easily overfitted.
Official code read, not copied: fredzzhang/atlas.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..learn.coefficients import Coefficients, near_one
from ..learn.loop import Job, Progress, Watch, train
from ..learn.moment import ANCHOR, CONCEPT
from ..learn.plan import Plan, Schedule
from ..learn.regress import negative_guidance, same
from ..learn.rollout import Rollout
from ..learn.scenes import concept_scenes, kept_scenes
from ..merging import Merged, asked
from ..result import Eraser
from ..spec import MethodSpec, Parameter, Value
from ..stack import Stack
from ..task import Task

_KEPT = "kept"


class Learned:
    """Trains one number per eraser and block."""

    needs_model = True
    spec = MethodSpec(
        name="learned",
        title="Learned coefficients (aTLAS)",
        paper="Zhang et al., Knowledge Composition using Task Vectors with Learned Anisotropic Scaling, NeurIPS 2024 "
        "(arXiv 2407.02880)",
        summary="Tunes how much of each eraser acts in each block of the model, to erase its names and keep the rest.",
        families=("demo",),
        parameters=(
            Parameter("steps", 60, "Optimiser steps, 1 to 10000. Start at 60.", minimum=1, maximum=10000, step=1),
            Parameter(
                "rate",
                0.05,
                "Learning rate of the coefficients, 0.0001 to 1. Start at 0.05.",
                minimum=1e-4,
                step=1e-4,
            ),
            Parameter(
                "batch", 4, "Prompts of each kind in a step, 1 to 64; start at 4.", minimum=1, maximum=64, step=1
            ),
            Parameter(
                "keep", 1.0, "Weight of preserved prompts against erased names, 0 to 100. Start at 1.", maximum=100.0
            ),
            Parameter(
                "eta",
                0.0,
                "How far beyond their replacement names are guided away, 0 to 10. Start at 0; 1 as in ESD.",
                maximum=10.0,
                step=0.1,
            ),
            Parameter(
                "near",
                0.01,
                "Weight of staying at the stack's own strengths, 0 to 10. Start at 0.01.",
                maximum=10.0,
                step=0.001,
                advanced=True,
            ),
            Parameter(
                "seed", 0, "Seed of everything random; any whole number.", maximum=2**31 - 1, step=1, advanced=True
            ),
        ),
    )

    def merge(self, stack: Stack, task: Task | None, settings: Mapping[str, Value]) -> Merged:
        task = asked(task, self.spec.title)
        keep, eta = float(settings["keep"]), float(settings["eta"])
        sources = [Rollout(concept_scenes(task, "scenes"), steps=20)]
        sources += [Rollout(kept_scenes(task), steps=20, zones={_KEPT: (0.0, 1.0)})] if keep else []
        plan = Plan(
            parameters=Coefficients(stack.active()),
            sources=tuple(sources),
            terms=(negative_guidance(eta, null=ANCHOR), *((same(CONCEPT, keep, _KEPT),) if keep else ())),
            penalties=(near_one(float(settings["near"])),),
        )
        schedule = Schedule(int(settings["steps"]), float(settings["rate"]), int(settings["batch"]))
        job = Job(self.spec.name, settings, plan, schedule, int(settings["seed"]))
        trained = train(task, job, _telling(task, schedule.steps))
        found = trained.eraser
        return Merged(
            Eraser(stack.recipe(self.spec.name, settings), context=found.context, adapters=found.adapters),
            f"{trained.steps} steps; {trained.ended or 'they ran to their end'}.",
        )


def _telling(task: Task, steps: int) -> Watch:
    """Tells whoever watches the task of each step."""
    told = iter(task.track(range(steps), steps))

    def watch(progress: Progress) -> bool:
        next(told, None)
        return False

    return watch


MERGE = Learned()
