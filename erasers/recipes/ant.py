"""ANT, auto-steering trajectories (Li et al., arXiv 2504.12782).

The first, noisy steps of a trajectory settle what a picture looks like, the later ones what is in it. So the former
keep their direction towards the concept and only the latter are turned round. On latents x1 of the first `keep_steps`
of the sampling steps, and x2 of the rest of the same trajectory:

    K = mse(S(x1, concept), T(x1, null) + eta [T(x1, concept) - T(x1, null)])
    E = mse(S(x2, concept), T(x2, null) - eta [T(x2, concept) - T(x2, null)])
    U = mse(S(x, null), T(x, null))                                              on each of them

    L = E + b U(x2) + k (K + b U(x1))

Form `masked`, for one concept, trains full weights where the gradients of L are largest: in every tensor the top
`share`, of the sums over `mask_draws` draws; what the masks of all of a concept's names have in common. Form
`adapters`, for many, trains LoRA with predictions that are guided at the rollouts' scale. Published for them:

              k     b     first steps of 50   cfg    trained for
    masked    1     0.5   7                   3      250 steps of batch 1, Adam
    adapters  0.5   2.5   4                   7.5    10 steps of batch 2 and rank 64, AdamW

Differs from the official programs, which in form `masked` keep the last steps instead of the first, take no gradients
of U, and mask with the entries whose gradients are smallest: here all is as in the paper. Gradients for the mask are
those of the untouched model, without steps in between. Latents are at the very level that the model is told. Adapters
of several concepts are trained as one and not fused afterwards. Rollouts are kept (`latents` tells otherwise).
Official code read, not copied: lileyang1210/ANT (non-commercial).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import SettingError
from ..learn import settings as shared
from ..learn.full import Full
from ..learn.guided import RegressGuided
from ..learn.low_rank import LowRank
from ..learn.moment import NULL, Scene
from ..learn.plan import KEEP, Plan, Schedule, Term
from ..learn.regress import same
from ..learn.rollout import Rollout
from ..learn.run import Run
from ..learn.saliency import Saliency
from ..learn.scenes import concept_scenes
from ..learn.where import ALL, BLOCKS, CROSS, NOT_CROSS
from ..spec import MethodSpec, Parameter, Value
from ..task import Task

MASKED, ADAPTERS = "masked", "adapters"
EARLY, LATE = "early", "late"


class _Form(NamedTuple):
    """Published values of a form."""

    keep: float
    null: float
    first: int
    cfg: float


_PUBLISHED = {MASKED: _Form(1.0, 0.5, 7, 3.0), ADAPTERS: _Form(0.5, 2.5, 4, 7.5)}
_TABLED = "takes what was published for the form"


class ANT:
    """Keeps the first part of the trajectory and turns the rest round."""

    spec = MethodSpec(
        name="ant",
        title="ANT",
        paper="Li et al., Set You Straight: Auto-Steering Denoising Trajectories to Sidestep Unwanted Concepts "
        "(arXiv 2504.12782)",
        summary="Leaves the first steps of drawing as they are and turns the later ones away from the concept, without "
        "a replacement.",
        families=(),
        parameters=(
            Parameter(
                "form",
                MASKED,
                "What is trained: full weights under a mask of the most salient ones, published for one concept "
                "(masked), or adapters, published for many.",
                choices=(MASKED, ADAPTERS),
            ),
            shared.where(ALL, (ALL, BLOCKS, CROSS, NOT_CROSS), "Published: all."),
            shared.eta(1.0, "1 as published"),
            Parameter(
                "keep_steps",
                0,
                f"How many of the first sampling steps keep their direction, 0 to 999. Start at 0, which {_TABLED}"
                ", 7 or 4 in 50. More keeps pictures closer to what they were, and at some point the concept as well.",
                maximum=999,
                step=1,
                unit="steps",
            ),
            Parameter(
                "keep_weight",
                0.0,
                f"Weight of the part that is kept, 0 to 10. Start at 0, which {_TABLED}, 1 or 0.5.",
                maximum=10.0,
            ),
            Parameter(
                "null_weight",
                0.0,
                f"Weight of staying as it was for the empty prompt, 0 to 10. Start at 0, which {_TABLED}, 0.5 or 2.5.",
                maximum=10.0,
            ),
            Parameter(
                "share",
                0.5,
                "Share of each layer's weights that a name's mask lets change, 0.01 to 1. Start at 0.5, as published.",
                minimum=0.01,
            ),
            Parameter(
                "mask_draws",
                50,
                "Batches of latents that each name's mask is measured on, 1 to 1000. Start at 50, as published.",
                minimum=1,
                maximum=1000,
                step=1,
                unit="batches",
                advanced=True,
            ),
            shared.templates(),
            shared.latents("Published: fresh, student in form masked, fresh in form adapters."),
            Parameter(
                "cfg",
                0.0,
                f"Guidance scale of the rollouts, and in form adapters of the predictions, 0 to 30. 0 {_TABLED}, "
                "3 or 7.5.",
                maximum=30.0,
                step=0.1,
                advanced=True,
            ),
            shared.sampling_steps(50),
            shared.trajectories(),
        ),
    )
    schedule = Schedule(steps=250, rate=5e-4, rank=64)
    small = Schedule(steps=130, rate=6e-4, batch=4, rank=8)

    def plan(self, task: Task, settings: Mapping[str, Value]) -> Plan:
        form, share = str(settings["form"]), float(settings["share"])
        published = _PUBLISHED[form]
        given = {**settings, "cfg": settings["cfg"] or published.cfg}
        zones = _zones(int(settings["keep_steps"]) or published.first, int(settings["sampling_steps"]))
        scenes = concept_scenes(task, str(settings["templates"]))
        terms = _terms(
            float(settings["eta"]),
            float(given["cfg"]) if form == ADAPTERS else 1.0,
            float(settings["keep_weight"]) or published.keep,
            float(settings["null_weight"]) or published.null,
        )
        sources = (shared.rollout_of(given, scenes, zones),)
        if form == ADAPTERS:
            return Plan(LowRank(str(settings["sites"])), sources, terms)
        # The masks look at kept rollouts whatever the training does: the student has not moved yet.
        kept = {**given, "latents": shared.KEPT}
        measured = tuple(
            Measured(shared.rollout_of(kept, own, zones), terms, int(settings["mask_draws"]))
            for own in _by_name(task, scenes)
        )
        return Plan(Full(str(settings["sites"])), sources, terms, mask=Saliency(measured, share, together=False))


def _zones(first: int, steps: int) -> Mapping[str, tuple[float, float]]:
    """The first steps and the rest, as shares."""
    if not 0 < first < steps:
        raise SettingError(
            f"keep_steps is {first} and sampling_steps is {steps}.", "Lower keep_steps or raise sampling_steps."
        )
    return {EARLY: (0.0, first / steps), LATE: (first / steps, 1.0)}


def _terms(eta: float, w: float, keep: float, null: float) -> tuple[Term, ...]:
    return (
        RegressGuided(-eta, w, at=LATE),
        same(NULL, null, LATE),
        RegressGuided(eta, w, at=EARLY, weight=keep, aim=KEEP),
        same(NULL, keep * null, EARLY),
    )


def _by_name(task: Task, scenes: tuple[Scene, ...]) -> tuple[tuple[Scene, ...], ...]:
    """The scenes of each name, in their order, which is that of the names."""
    count = len(scenes) // sum(len(concept.names) for concept in task.concepts.erase)
    return tuple(scenes[start : start + count] for start in range(0, len(scenes), count))


@dataclass(frozen=True)
class Measured:
    """The loss on draws of a name's own trajectories: what its saliency is measured by."""

    source: Rollout
    terms: tuple[Term, ...]
    draws: int

    def __call__(self, run: Run) -> Iterator[Callable[[], Tensor]]:
        for _ in range(self.draws):
            yield lambda: self._loss(run)

    def _loss(self, run: Run) -> Tensor:
        moment = self.source.draw(run, run.schedule.batch)
        seen = run.seen([ask for term in self.terms for ask in term.asks()], moment)
        return torch.stack([term.weight * term.loss(run, moment, seen) for term in self.terms]).sum()


RECIPE = ANT()
