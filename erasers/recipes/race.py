"""RACE, Robust Adversarial Concept Erase (Kim et al., ECCV 2024, arXiv 2405.16341): ESD under attack.

An erased model is trained on with the encoded prompt e_c under attack (learn/pgd.py), so that what lies around the
concept's features goes with it:

    e' = e_c + delta, |delta| <= eps,    L = mse( S(e'), T(null) - eta [T(c) - T(null)] )

Training starts from the untouched model: its first half is plain ESD of the same tensors, which gives the erased model
that the paper starts from; the attack begins after it. `lasso` holds the tensors near where that half ended.

Differs from the official program: the number of attack steps is a setting there too, but has no effect; latents are at
the very level that the model is told; they come from the untouched model and are used again (`latents` tells
otherwise); prompts and what they are led to are ESD's (`templates`, `neutral`); biases are not trained.
Official code read, not copied: chkimmmmm/R.A.C.E. (MIT).
"""

from __future__ import annotations

from collections.abc import Mapping

from ..learn import settings as shared
from ..learn.after import After, Tether
from ..learn.full import Full
from ..learn.moment import ATTACKED
from ..learn.pgd import Pgd
from ..learn.plan import Plan, Schedule
from ..learn.scenes import concept_scenes
from ..learn.switch import Switch
from ..learn.where import ALL, CROSS, KEYS_VALUES, NOT_CROSS, SELF
from ..spec import MethodSpec, Parameter, Value
from ..task import Task


class RACE:
    """Trains towards the negatively guided prediction, from attacked features of the concept."""

    spec = MethodSpec(
        name="race",
        title="RACE",
        paper="Kim et al., R.A.C.E.: Robust Adversarial Concept Erasure for Secure Text-to-Image Diffusion Model, "
        "ECCV 2024 (arXiv 2405.16341)",
        summary="ESD that goes on with the concept's text features moved by an adversary, to erase what is near them.",
        families=("demo",),
        parameters=(
            shared.where(CROSS, (CROSS, NOT_CROSS, SELF, KEYS_VALUES, ALL), "As ESD's; cross is the usual one."),
            shared.eta(1.0, "1 as published"),
            Parameter(
                "bound",
                0.1,
                "How far the adversary may move each entry of the text features, 0 to 10; 0.1 as published, for "
                "entries about 1 wide. 0 is ESD. Too high harms all prompts.",
                maximum=10.0,
            ),
            Parameter(
                "attack_steps",
                10,
                "Steps that the adversary takes before each step of the training, each a quarter of its bound long, "
                "0 to 1000; 10 as published.",
                maximum=1000,
                step=1,
                unit="steps",
            ),
            Parameter(
                "lasso",
                0.0,
                "Weight that holds what is trained near where the adversary found it, 0 to 100. Published: 0, or 0.1.",
                maximum=100.0,
            ),
            Parameter(
                "plain",
                0.5,
                "Share of the training without the adversary, at its beginning, 0 to 1. It stands for the erased model "
                "that the paper starts from: with 0.5 both parts are 1000 steps, as published.",
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
    small = Schedule(steps=80, rate=5e-4, batch=4)

    def plan(self, task: Task, settings: Mapping[str, Value]) -> Plan:
        switch, adversary = (
            Switch(float(settings["plain"])),
            Pgd(float(settings["bound"]), int(settings["attack_steps"])),
        )
        return Plan(
            parameters=Full(str(settings["sites"])),
            sources=(shared.rollout_of(settings, concept_scenes(task, str(settings["templates"]))),),
            makers={ATTACKED: After(adversary, switch)},
            terms=(shared.guidance_of(settings, ATTACKED), Tether(switch, float(settings["lasso"]))),
        )


RECIPE = RACE()
