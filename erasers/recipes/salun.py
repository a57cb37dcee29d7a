"""SalUn, saliency unlearning (Fan et al., ICLR 2024, arXiv 2310.12508).

On pictures x of the concept, at any time, the student sees in the concept what it sees in a wrong prompt, its
replacement, while it goes on denoising pictures that are kept:

    L = mse(S(x, concept), sg[S(x, anchor)]) + beta mse(S(x', held), noise')

Only those weights change that matter most for the concept: M = 1 for the largest `share` of |gradient|, over all
trained weights together, of

    -mse(noise, (1 + g) S(x, concept) - g S(x, null))

summed over the pictures before the first step; gradients are multiplied by M.

Differs from the official program: both predictions of the first loss look at the very same latents, which there are
encoded twice; pictures are drawn of the names in the sentences of `templates`, or are the user's; those that are kept
show the preserved prompts; biases and norms are not trained.
Official code read, not copied: OPTML-Group/Unlearn-Saliency (MIT).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..learn import settings as shared
from ..learn.full import Full
from ..learn.moment import ANCHOR, CONCEPT, NULL, STILL, Features, Latents
from ..learn.pictures import Clean, Pictures
from ..learn.plan import Plan, Schedule
from ..learn.regress import Denoise, Regress
from ..learn.run import Run
from ..learn.saliency import Saliency
from ..learn.scenes import concept_scenes, kept_scenes
from ..learn.space import mixed, own_space
from ..learn.where import ALL, CROSS, KEYS_VALUES
from ..spec import MethodSpec, Parameter, Value
from ..task import Task

_KEPT = "kept"


class SalUn:
    """Trains the salient weights towards a wrong prompt's prediction, on pictures of the concept."""

    spec = MethodSpec(
        name="salun",
        title="SalUn",
        paper="Fan et al., SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency (arXiv 2310.12508)",
        summary="Teaches the model to see in the concept what it sees in its replacement, and changes only the weights "
        "that matter most for the concept.",
        families=(),
        parameters=(
            shared.where(ALL, (ALL, CROSS, KEYS_VALUES), "Published: all, or cross."),
            Parameter(
                "share",
                0.5,
                "Share of the weights that may change, those with the largest gradients, 0.01 to 1. Start at 0.5, as "
                "published. Lower keeps more and erases less.",
                minimum=0.01,
            ),
            Parameter(
                "beta",
                0.1,
                "Weight of denoising pictures of the preserved prompts, 0 to 10. Start at 0.1; 0.5 was published too. "
                "Higher keeps more.",
                maximum=10.0,
            ),
            shared.templates(published="the names of a data set's classes"),
            shared.pictures(32, "800 as published"),
            Parameter(
                "cfg",
                6.0,
                "Guidance scale that the pictures are drawn with, 1 to 30. Start at 6, or at the one you draw with.",
                minimum=1.0,
                maximum=30.0,
                step=0.1,
                advanced=True,
            ),
            Parameter(
                "sampling_steps",
                25,
                "Sampler steps of each picture, 2 to 1000. Start at 25.",
                minimum=2,
                maximum=1000,
                step=1,
                unit="steps",
                advanced=True,
            ),
            Parameter(
                "mask_guidance",
                7.5,
                "g, the guidance in the loss that the saliency is measured with, 0 to 30; 7.5 as published.",
                maximum=30.0,
                step=0.1,
                advanced=True,
            ),
        ),
    )
    schedule = Schedule(steps=500, rate=1e-5, batch=8)
    small = Schedule(steps=40, rate=1e-4, batch=4)

    def plan(self, task: Task, settings: Mapping[str, Value]) -> Plan:
        drawn = {
            "count": int(settings["pictures"]),
            "steps": int(settings["sampling_steps"]),
            "cfg": float(settings["cfg"]),
        }
        forget = Pictures(concept_scenes(task, str(settings["templates"])), given=True, **drawn)
        retain, beta = Pictures(kept_scenes(task), name=_KEPT, **drawn), float(settings["beta"])
        measured = GuidedError(forget, float(settings["mask_guidance"]))
        return Plan(
            parameters=Full(str(settings["sites"])),
            sources=(forget, retain) if beta else (forget,),
            terms=(
                Regress({(STILL, ANCHOR): 1.0}, CONCEPT),
                *((Denoise(CONCEPT, _KEPT, beta),) if beta else ()),
            ),
            mask=Saliency((measured,), float(settings["share"])),
        )


@dataclass(frozen=True)
class GuidedError:
    """Minus the error of guided predictions for each picture in turn, in batches: what SalUn measures saliency by."""

    pictures: Pictures
    guidance: float

    def __call__(self, run: Run) -> Iterator[Callable[[], Tensor]]:
        clean = self.pictures.clean(run)
        for rows in torch.arange(len(clean.latents)).split(run.schedule.batch):
            yield partial(self._loss, run, clean, rows)

    def _loss(self, run: Run, clean: Clean, rows: Tensor) -> Tensor:
        latents = clean.latents[rows]
        noise = torch.randn(latents.shape, generator=run.generator)
        sigma = run.model.level(torch.rand(len(rows), generator=run.generator))
        kind = run.model.prediction()
        x = mixed(kind, latents, noise, sigma)
        scenes = [clean.scenes[i] for i in rows.tolist()]
        both = Features.joined([run.features([scene[role] for scene in scenes]) for role in (CONCEPT, NULL)])
        own, other = run.student(Latents(torch.cat([x, x]), torch.cat([sigma, sigma]), ()), both).chunk(2)
        g = self.guidance
        return -((1 + g) * own - g * other - own_space(kind, x, sigma, latents)).square().mean()


RECIPE = SalUn()
