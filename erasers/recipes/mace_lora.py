"""MACE's adapters (Lu et al., CVPR 2024, arXiv 2403.06135): attention that the refinement left inside the object.

Text features pass MACE's closed-form refinement first (the method `mace`; learn/started.py). Behind it LoRA of rank 1
on the keys and values of cross-attention is trained on noised pictures of the concept, to look less at the concept's
tokens and end tokens J where the concept is, over cross-attention layers l:

    L = sum_l || A_l[:, inside, J] ||_F

with times from p(t) ~ sigmoid(.05 (t - 200)) - sigmoid(.05 (t - 400)) of 1000. The eraser holds both parts.

The paper writes squared norms; its program takes the norms, as here. Several concepts share one adapter here. As
published, erase each by itself and merge the adapters in closed form (algebra/fusion.py).
Differs from the program: regions are the user's where there are any, else not a segmenter's but the untouched model's
own attention to the concept's name, as in Receler (learn/region.py); there are sentences of our own; weight decay
pulls towards the refined weights.
Official code: Shilin-LU/MACE (non-commercial; facts only, nothing copied).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..learn import settings as shared
from ..learn.attention_norm import AttentionNorm
from ..learn.law import evenly
from ..learn.low_rank import LowRank
from ..learn.moment import Latents
from ..learn.pictures import Pictures
from ..learn.places import ENDS, EVERY
from ..learn.plan import ADAMW, Plan, Schedule
from ..learn.region import OwnMaps
from ..learn.run import Run
from ..learn.scenes import concept_scenes
from ..learn.started import Started, fitted
from ..learn.where import KEYS_VALUES
from ..spec import MethodSpec, Parameter, Value
from ..task import Task

INSIDE, EVERYWHERE = "inside", "everywhere"
BAND = "200 to 400"
_TIMES = 1000
_STYLE = "style"


class MACELoRA:
    """Trains adapters behind MACE's refinement."""

    spec = MethodSpec(
        name="mace_lora",
        title="MACE",
        paper="Lu et al., MACE: Mass Concept Erasure in Diffusion Models, CVPR 2024 (arXiv 2403.06135)",
        summary="Refines the tokens around the concept in closed form, then trains attention away from its own.",
        families=("demo",),
        parameters=(
            shared.templates("object", "30 sentences"),
            Parameter(
                "region",
                INSIDE,
                "Where attention is brought down: inside the concept, by the regions that came with your pictures or "
                "else by the model's own attention (inside, for objects and people), or everywhere, for styles.",
                choices=(INSIDE, EVERYWHERE),
            ),
            Parameter(
                "threshold",
                0.1,
                "Share of the attention's range above which a pixel belongs to the concept, 0 to 1, where no regions "
                "are given; start at 0.1, as Receler does. Lower takes more of the picture for the concept.",
                advanced=True,
            ),
            Parameter(
                "end_tokens",
                EVERY,
                "End tokens that count as the concept's own, beside those of its name: all, which for Stable "
                "Diffusion 1 is all of the padding (as published), the first, or none.",
                choices=ENDS,
                advanced=True,
            ),
            Parameter(
                "times",
                BAND,
                "Times of the noise: mostly 200 to 400 of 1000, when shapes have settled (as published for objects and "
                "people), or evenly (as published for nudity).",
                choices=(BAND, "evenly"),
                advanced=True,
            ),
            shared.pictures(8, "8 as published; pictures of yours are used instead where there are any"),
        ),
    )
    schedule = Schedule(steps=50, rate=1e-5, optimizer=ADAMW, decay=0.01, clip=1.0)
    small = Schedule(steps=60, rate=1.5e-3, batch=4, optimizer=ADAMW, decay=0.01, clip=1.0)

    def plan(self, task: Task, settings: Mapping[str, Value]) -> Plan:
        kind = str(settings["templates"])
        scenes = concept_scenes(task, kind)
        refined = fitted(task, "mace", {"templates": _STYLE if kind == _STYLE else "object"})
        law = band if settings["times"] == BAND else evenly
        where = Inside(OwnMaps(float(settings["threshold"]))) if settings["region"] == INSIDE else None
        return Plan(
            parameters=Started(refined, LowRank(KEYS_VALUES, alpha=0.0)),
            sources=(Pictures(scenes, count=int(settings["pictures"]), law=law, given=True),),
            terms=(AttentionNorm(str(settings["end_tokens"]), per_layer=True, region=where),),
        )


@dataclass(frozen=True)
class Inside:
    """The regions that came with the pictures, or what the model's own attention tells (a `Region`)."""

    own: OwnMaps

    def __call__(self, run: Run, latents: Latents) -> Tensor:
        return self.own(run, latents) if latents.regions is None else latents.regions


def band(count: int, generator: torch.Generator) -> Tensor:
    """Times mostly between 200 and 400 of 1000, as shares of sampling (a `Law`)."""
    times = torch.arange(_TIMES, dtype=torch.float64)
    weights = (0.05 * (times - 200)).sigmoid() - (0.05 * (times - 400)).sigmoid()
    drawn = torch.multinomial(weights, count, replacement=True, generator=generator)
    return 1 - drawn.float() / (_TIMES - 1)


RECIPE = MACELoRA()
