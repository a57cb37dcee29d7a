"""Concept Ablation (Kumari et al., ICCV 2023, arXiv 2303.13516).

On pictures x of the anchor, at any time, the student sees in the concept what it sees in the anchor:

    model-based:  L = mse(S(x, concept), sg[S(x, anchor)])
    noise-based:  L = mse(S(x, concept), noise)
    regulariser:  + lam * mse(S(x', anchor), noise')      on other draws of the same pictures

The target is the student's own prediction without gradients, not that of a frozen copy. The keys and values of the
first token pass no gradients.

Differs from the official programs: pictures are the denoiser's own latents and are not resized at random, so no mask
of valid places is needed; they are drawn by Euler's method without new noise; prompts are the names in the sentences
of `templates` instead of 200 written ones; weight decay pulls to the untouched weights, not to zero; token embeddings
are not trained. The two official programs differ in lam (0.2 and 1), which they set where one of the two names
contains the other, and for memorised pictures and nudity.
Official code read, not copied: nupurkmr9/concept-ablation (MIT; some of its sources carry other notices).
"""

from __future__ import annotations

from collections.abc import Mapping

from ..learn import settings as shared
from ..learn.again import Again
from ..learn.first_token import FirstTokenStill
from ..learn.full import Full
from ..learn.moment import ANCHOR, CONCEPT, STILL
from ..learn.pictures import Pictures
from ..learn.plan import ADAMW, ERASE, Plan, Schedule
from ..learn.regress import Denoise, Regress
from ..learn.scenes import concept_scenes
from ..learn.where import ALL, CROSS, KEYS_VALUES
from ..spec import MethodSpec, Parameter, Value
from ..task import Task

MODEL_BASED, NOISE_BASED = "model-based", "noise-based"
_AGAIN = "again"


class ConceptAblation:
    """Trains the concept's prediction towards the anchor's, on pictures of the anchor."""

    spec = MethodSpec(
        name="concept_ablation",
        title="Concept Ablation",
        paper="Kumari et al., Ablating Concepts in Text-to-Image Diffusion Models, ICCV 2023 (arXiv 2303.13516)",
        summary="Teaches the model to see in the concept what it sees in its replacement, on pictures of that.",
        families=(),
        parameters=(
            Parameter(
                "form",
                MODEL_BASED,
                "What the prediction for the concept is trained towards: the model's own for the replacement "
                "(model-based), or the noise in the replacement's pictures (noise-based). Start with model-based, "
                "which the paper prefers.",
                choices=(MODEL_BASED, NOISE_BASED),
            ),
            shared.where(
                KEYS_VALUES,
                (KEYS_VALUES, CROSS, ALL),
                "Published: cross-kv; all for memorised pictures, cross for nudity.",
            ),
            Parameter(
                "lam",
                0.0,
                "Weight of the ordinary denoising loss on pictures of the replacement, 0 to 10. Start at 0; as "
                "published, 0.2 or 1 where one name contains the other (grumpy cat, cat), for memorised pictures and "
                "for nudity. Higher keeps more of the replacement.",
                maximum=10.0,
                step=0.01,
            ),
            shared.templates(published="200 sentences written for each concept"),
            shared.pictures(64, "200 to 1000 as published, which draw from more prompts"),
            shared.cfg(6.0),
            shared.sampling_steps(25),
            Parameter(
                "still_first",
                True,
                "Whether gradients stop at the first token's keys and values, which all prompts share. On as "
                "published; off erases faster and moves other prompts too.",
                advanced=True,
            ),
        ),
    )
    schedule = Schedule(steps=100, rate=8e-6, batch=4, optimizer=ADAMW, decay=0.01)
    small = Schedule(steps=120, rate=6e-4, batch=4, optimizer=ADAMW, decay=0.01)

    def plan(self, task: Task, settings: Mapping[str, Value]) -> Plan:
        pictures = Pictures(
            concept_scenes(task, str(settings["templates"])),
            ANCHOR,
            count=int(settings["pictures"]),
            steps=int(settings["sampling_steps"]),
            cfg=float(settings["cfg"]),
        )
        lam, layers = float(settings["lam"]), Full(str(settings["sites"]))
        toward_anchor = Regress({(STILL, ANCHOR): 1.0}, CONCEPT)
        toward_noise = Denoise(CONCEPT, aim=ERASE)
        return Plan(
            parameters=FirstTokenStill(layers) if settings["still_first"] else layers,
            sources=(pictures, Again(pictures, _AGAIN)) if lam else (pictures,),
            terms=(
                toward_anchor if settings["form"] == MODEL_BASED else toward_noise,
                *((Denoise(ANCHOR, _AGAIN, lam),) if lam else ()),
            ),
        )


RECIPE = ConceptAblation()
