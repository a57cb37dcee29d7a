"""Co-Erasing, with words and pictures (Li et al., 2025, arXiv 2505.11131).

First ESD erases the concept by its words. Then its words c together with a picture I of it are erased from what that
has made, T':

    1.  y = T(null) - eta [T(c) - T(null)],                L = mse(S(c), y)
    2.  y = T'(null) - eta [T'(c + I') - T'(null)],        L = mse(S(c + I'), y)

with I' the picture's tokens, refined by the words: softmax(I K^T / sqrt(d)) V, K = V = the words' features. In the
second stage latents come from rollouts under c without guidance, and are blurred.

Differs from the paper: there is no image adapter, so pictures are token vectors that textual inversion learned from
each, and that stand behind the words instead of beside them in an attention of their own; refinement works on their
text features; fewer pictures, since each takes an inversion; both stages are one training.
Differs from the official program: rollouts go down the noise levels, where it goes up; latents come from the untouched
model and are used again (`latents` tells otherwise); prompts and what they are led to are ESD's here (`templates`,
`neutral`); biases and norms are not trained.
Official code read, not copied: Ferry-Li/Co-Erasing (no licence).
"""

from __future__ import annotations

from collections.abc import Mapping

from ..learn import settings as shared
from ..learn.blur import Blurred
from ..learn.full import Full
from ..learn.inversion import Fit
from ..learn.moment import STILL
from ..learn.pictures import Pictures
from ..learn.plan import ERASE, Plan, Schedule
from ..learn.refine import SHOWN, Illustrated
from ..learn.regress import Regress
from ..learn.scenes import concept_scenes
from ..learn.stages import StagedSource, StagedTerm
from ..learn.switch import Switch
from ..learn.where import ALL, CROSS, NOT_CROSS
from ..spec import MethodSpec, Parameter, Value
from ..task import Task

_BLURS = {"none": 1, "3 x 3": 3, "5 x 5": 5}


class CoErasing:
    """Erases a concept's words, then its words with pictures of it."""

    spec = MethodSpec(
        name="co_erasing",
        title="Co-Erasing",
        paper="Li et al., One Image is Worth a Thousand Words: A Usability Preservable Text-Image Collaborative "
        "Erasing Framework, 2025 (arXiv 2505.11131)",
        summary="Erases a concept by its words, and then by its words together with what pictures of it show.",
        families=("demo",),
        parameters=(
            shared.where(NOT_CROSS, (NOT_CROSS, ALL, CROSS), "Start at not-cross, as its program does."),
            shared.eta(1.0, "1 as published"),
            Parameter(
                "text_share",
                0.5,
                "Share of the steps that erase by words alone, 0 to 1; the rest go on with pictures. Start at 0.5; 0 "
                "where the model already carries an ESD eraser.",
            ),
            shared.pictures(8, "published are 100 to 200 through an image adapter"),
            Parameter(
                "vectors",
                4,
                "Tokens that stand for a picture, 0 to 16. Start at 4, as published; 0 erases by words alone.",
                minimum=0,
                maximum=16,
                step=1,
                unit="tokens",
            ),
            Parameter(
                "inversion_steps",
                50,
                "Steps in which the tokens of each picture are learned, before training, 1 to 20000. Start at 50.",
                minimum=1,
                maximum=20000,
                step=1,
                unit="steps",
            ),
            Parameter(
                "refine",
                True,
                "Whether pictures only say how the words' features are mixed (on, as published), which leaves out what "
                "else they show; off to take the pictures' tokens as they were learned.",
            ),
            Parameter(
                "blur",
                "3 x 3",
                "How far the latents of the second stage are blurred: not, or by 3 or 5 places. Published: 3 to 5.",
                choices=tuple(_BLURS),
                advanced=True,
            ),
            shared.templates(),
            shared.latents("Published: fresh, student."),
            shared.cfg(3.0),
            shared.sampling_steps(50),
            shared.trajectories(),
            shared.neutral(),
        ),
    )
    schedule = Schedule(steps=2000, rate=1e-5)
    small = Schedule(steps=80, rate=3e-4, batch=4)

    def plan(self, task: Task, settings: Mapping[str, Value]) -> Plan:
        scenes, eta = concept_scenes(task, str(settings["templates"])), float(settings["eta"])
        names, neutral = task.concepts.names, shared.neutral_role(settings)
        switch = Switch(float(settings["text_share"]))
        references = Pictures(scenes, name="references", count=int(settings["pictures"]), given=True)
        shown = Illustrated(
            references,
            names,
            Fit(int(settings["inversion_steps"]), batch=2),
            int(settings["vectors"]),
            bool(settings["refine"]),
        )
        guided = shared.rollout_of(settings, scenes)
        plain = shared.rollout_of({**settings, "cfg": 1.0}, scenes)
        pictured = Regress({(STILL, neutral): 1 + eta, (STILL, SHOWN): -eta}, SHOWN)
        return Plan(
            parameters=Full(str(settings["sites"])),
            sources=(StagedSource(switch, guided, Blurred(plain, _BLURS[str(settings["blur"])])),),
            terms=(StagedTerm(switch, shared.guidance_of(settings), pictured, ERASE),),
            makers={SHOWN: shown},
        )


RECIPE = CoErasing()
