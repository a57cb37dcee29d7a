"""Few-shot erasing (Fuchi and Takagi, 2024, arXiv 2405.07288): the text encoder unlearns from a few pictures.

Textual inversion turned round: the text encoder E climbs the loss that teaches a concept from its pictures,

    L = - mse( T(x, t, E(template(c))), noise )

on latents of the pictures with fresh noise, in a sentence drawn anew each time. The feed-forward layers and the last
attention are trained; the denoiser stays.

Nothing is kept and nothing bounds the loss: the few steps are the method, and some more of them break every prompt.
Without pictures of the user's the untouched model draws them. `source` = "random" is the published form without any.
Differs from the official program: its epochs are steps here (two of batch 2 for an epoch of four pictures); the
sentences are this pack's; biases are not trained; Adam's epsilon is torch's.
Official code read, not copied: fmp453/few-shot-erasing (Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Mapping

from ..algebra.context import TEMPLATES
from ..learn import settings as shared
from ..learn.full import Full
from ..learn.moment import CONCEPT
from ..learn.pictures import Pictures
from ..learn.plan import ERASE, Plan, Schedule
from ..learn.regress import Denoise
from ..learn.reworded import Reworded
from ..learn.scenes import concept_scenes
from ..learn.trainables import TEXT
from ..learn.uniform import Uniform
from ..learn.where import TEXT_ALL, TEXT_FEW
from ..spec import MethodSpec, Parameter, Value
from ..task import Task

OF_CONCEPT, RANDOM = "of the concept", "random"


class FewShot:
    """Climbs the denoising loss on pictures of the concept, by the text encoder."""

    spec = MethodSpec(
        name="few_shot",
        title="Few-shot erasing",
        paper="Fuchi and Takagi, Erasing Concepts from Text-to-Image Diffusion Models with Few-shot Unlearning "
        "(arXiv 2405.07288)",
        summary="Makes the text encoder's features useless for pictures of the concept, in a few steps.",
        families=("demo",),
        parameters=(
            Parameter(
                "sites",
                TEXT_FEW,
                "The layers of the text encoder that are trained: the feed-forward ones and the last attention "
                "(published), or all.",
                choices=(TEXT_FEW, TEXT_ALL),
            ),
            Parameter(
                "source",
                OF_CONCEPT,
                "What is unlearned from: pictures of the concept, yours or, without any, some that the model draws; or "
                "random numbers in their place (published as the form without pictures).",
                choices=(OF_CONCEPT, RANDOM),
            ),
            Parameter(
                "pictures",
                4,
                "Pictures of each name that the model draws where you give none, 1 to 64; about 4 as published.",
                minimum=1,
                maximum=64,
                step=1,
                unit="pictures",
                advanced=True,
            ),
            shared.templates("object", "27 sentences for objects, 19 for styles"),
        ),
    )
    schedule = Schedule(steps=10, rate=1e-5, batch=2, betas=(0.9, 0.98), decay=1e-8)
    small = Schedule(steps=10, rate=1e-3, batch=2, betas=(0.9, 0.98), decay=1e-8)

    def plan(self, task: Task, settings: Mapping[str, Value]) -> Plan:
        scenes = concept_scenes(task, "none")
        count = int(settings["pictures"]) * len(scenes)
        shown = Pictures(scenes, count=count, given=True) if settings["source"] == OF_CONCEPT else Uniform(scenes)
        return Plan(
            parameters=Full(str(settings["sites"]), TEXT),
            sources=(Reworded(shown, TEMPLATES[str(settings["templates"])]),),
            terms=(Denoise(CONCEPT, weight=-1.0, aim=ERASE),),
        )


RECIPE = FewShot()
