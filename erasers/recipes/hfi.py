"""HFI, human feedback inversion (Kim et al., ECCV 2024, arXiv 2407.21032), with SDD (Kim et al., arXiv 2307.05977).

People flag pictures; textual inversion sums those up in soft tokens v*, which then are the concept. SDD distils the
student's own prediction for the empty prompt into that for the tokens; a moving average is the result:

    L = mse(S(x, t, v*), sg[S(x, t, null)]),    x rolled out under v*,  t ~ Beta(3, 3)

Flagged pictures are the user's; where there are none, the untouched model draws some of the concept's prompts.
Several concepts are summed up in one word, as the flagged pictures of a review are.

Differs from the paper: no reward model weighs the pictures in the inversion, every flagged picture counts alike; the
search starts at the concept's name, and its length is ours; latents are the untouched model's and are used again
(`latents`); differences of weights are trained, so weight decay pulls towards the untouched model.
The official repository of HFI (nannullna/safeguard-hfi, MIT) holds no code; that of SDD (nannullna/safe-diffusion, no
licence) was read, not copied.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..learn import settings as shared
from ..learn.full import Full
from ..learn.inversion import INVERTED, Fit, Word
from ..learn.law import middling
from ..learn.moment import AVERAGE, NULL, STILL, STUDENT, TEACHER
from ..learn.pictures import Pictures
from ..learn.plan import ADAMW, Plan, Schedule
from ..learn.regress import Regress
from ..learn.rollout import Rollout
from ..learn.scenes import concept_scenes
from ..learn.where import ALL, CROSS, NOT_CROSS, SELF
from ..spec import MethodSpec, Parameter, Value
from ..task import Task

_WHO = {shared.FRESH_AVERAGE: AVERAGE, shared.STUDENT_FRESH: STUDENT}


class HFI:
    """Erases what flagged pictures have in common."""

    spec = MethodSpec(
        name="hfi",
        title="HFI",
        paper="Kim et al., Safeguard Text-to-Image Diffusion Models with Human Feedback Inversion, ECCV 2024 "
        "(arXiv 2407.21032)",
        summary="Learns a word for what flagged pictures show, and teaches the model to see nothing in that word.",
        families=("demo",),
        parameters=(
            shared.where(CROSS, (CROSS, SELF, NOT_CROSS, ALL), "Start at cross, as published."),
            Parameter(
                "vectors",
                1,
                "Soft tokens that sum up the flagged pictures, 1 to 16. Start at 1, as published; more say more.",
                minimum=1,
                maximum=16,
                step=1,
                unit="tokens",
            ),
            Parameter(
                "inversion_steps",
                300,
                "Steps in which the soft tokens are learned, before training begins, 1 to 20000. Start at 300.",
                minimum=1,
                maximum=20000,
                step=1,
                unit="steps",
            ),
            Parameter(
                "inversion_rate",
                5e-3,
                "Learning rate of the soft tokens, 0.00001 to 1. Start at 0.005; token vectors of CLIP have a spread "
                "of 0.01 to 0.03.",
                minimum=1e-5,
                maximum=1.0,
                step=1e-3,
                advanced=True,
            ),
            shared.pictures(16, "only where none are given"),
            shared.templates(),
            shared.averaged_latents(),
            shared.cfg(3.0),
            shared.sampling_steps(50),
            shared.trajectories(),
        ),
    )
    schedule = Schedule(steps=1500, rate=1e-5, optimizer=ADAMW, decay=1e-4, clip=1.0, average=0.999)
    small = Schedule(steps=80, rate=4e-4, batch=4, optimizer=ADAMW, decay=1e-4, clip=1.0, average=0.9)

    def plan(self, task: Task, settings: Mapping[str, Value]) -> Plan:
        scenes = concept_scenes(task, str(settings["templates"]))
        names = task.concepts.names
        fit = Fit(int(settings["inversion_steps"]), float(settings["inversion_rate"]))
        flagged = Pictures(scenes, name="flagged", count=int(settings["pictures"]), given=True)
        word = Word(flagged, names, int(settings["vectors"]), fit)
        who = str(settings["latents"])
        latents = Rollout(
            scenes,
            float(settings["cfg"]),
            int(settings["sampling_steps"]),
            who=_WHO.get(who, TEACHER),
            kept=int(settings["trajectories"]) if who == shared.KEPT else 0,
            law=middling,
            says=word.features,
        )
        return Plan(
            parameters=Full(str(settings["sites"])),
            sources=(latents,),
            terms=(Regress({(STILL, NULL): 1.0}, INVERTED),),
            makers={INVERTED: word},
        )


RECIPE = HFI()
