"""DoCo, concept domain correction and concept preserving gradient (Wu et al., AAAI 2025, arXiv 2405.15304).

A discriminator D tells clean latents that are estimated under the anchor from those estimated under the concept, both
from the same pictures x of the anchor, and the student learns to pass its own for the former:

    real = X0(T(x, anchor)),    fake = X0(S(x, concept))
    L_D = bce(D(real), 0) + bce(D(fake), 1),    L_G = bce(D(fake), 0),    L_p = mse(S(x', anchor), noise')

In each tensor whose gradients g of L_G and k of L_p conflict, g . k < 0, the student descends

    g - lam (g . k / k . k) k

and L_p itself is not descended. The keys and values of the first token pass no gradients. D first learns alone.

Differs from the official program, which subtracts lam cos(g, k) k / |k| (`variant` as released): for gradients shorter
than 1 that turns the conflict's sign round. Pictures are the denoiser's own latents, not resized at random; D halves
the map less often where latents are below 64x64, and starts from normal weights of 0.02.
Official code read, not copied: yongliang-wu/DoCo (no licence).
"""

from __future__ import annotations

from collections.abc import Mapping

from ..algebra.parameters import variant
from ..learn import settings as shared
from ..learn.again import Again
from ..learn.discriminator import Domain, Later
from ..learn.first_token import FirstTokenStill
from ..learn.full import Full
from ..learn.moment import ANCHOR
from ..learn.pictures import Pictures
from ..learn.plan import ADAMW, Plan, Schedule
from ..learn.regress import Denoise
from ..learn.scenes import concept_scenes
from ..learn.surgery import Surgery
from ..learn.where import ALL, CROSS, KEYS_VALUES
from ..spec import MethodSpec, Parameter, Value
from ..task import Task

_AGAIN = "again"


class DoCo:
    """Trains the concept's pictures to pass for the anchor's, against a discriminator."""

    spec = MethodSpec(
        name="doco",
        title="DoCo",
        paper="Wu et al., Unlearning Concepts in Diffusion Model via Concept Domain Correction and Concept Preserving "
        "Gradient, AAAI 2025 (arXiv 2405.15304)",
        summary="Teaches the model that what it draws for the concept shall pass for its replacement, against a "
        "discriminator, in directions that keep the replacement.",
        families=(),
        parameters=(
            shared.where(KEYS_VALUES, (KEYS_VALUES, CROSS, ALL), "Published: cross-kv."),
            Parameter(
                "lam",
                1.0,
                "How much of a conflict with keeping the replacement is taken from the erasing gradient, 0 to 2. Start "
                "at 1, which takes all of it, as published. 0 takes nothing.",
                maximum=2.0,
            ),
            Parameter(
                "disc_rate",
                1e-4,
                "Learning rate of the discriminator, 0.000001 to 0.01. Start at 0.0001; as published that for objects "
                "and nudity, and 0.0005 for styles. Higher and it wins early, which erases nothing.",
                minimum=1e-6,
                maximum=1e-2,
                step=1e-6,
            ),
            Parameter(
                "head_start",
                0.5,
                "Share of the steps in which the discriminator learns alone, 0 to 0.9. Start at 0.5, as published. "
                "Lower leaves more steps to erase in.",
                maximum=0.9,
            ),
            shared.templates(published="sentences written for each concept"),
            shared.pictures(64, "200 to 1000 as published, which draw from more prompts"),
            shared.cfg(6.0),
            shared.sampling_steps(25),
            variant(
                "whether the conflict that is taken from the gradient is measured in its length, or as released not."
            ),
        ),
    )
    schedule = Schedule(steps=2000, rate=4.8e-5, batch=8, optimizer=ADAMW, decay=0.01, clip=1.0)
    small = Schedule(steps=128, rate=5e-4, batch=8, optimizer=ADAMW, decay=0.01, clip=1.0)

    def plan(self, task: Task, settings: Mapping[str, Value]) -> Plan:
        pictures = Pictures(
            concept_scenes(task, str(settings["templates"])),
            ANCHOR,
            count=int(settings["pictures"]),
            steps=int(settings["sampling_steps"]),
            cfg=float(settings["cfg"]),
        )
        head_start = float(settings["head_start"])
        return Plan(
            parameters=FirstTokenStill(Full(str(settings["sites"]))),
            sources=(pictures, Again(pictures, _AGAIN)),
            terms=(Domain(float(settings["disc_rate"]), head_start), Later(Denoise(ANCHOR, _AGAIN), head_start)),
            surgery=Surgery(float(settings["lam"]), str(settings["variant"])),
        )


RECIPE = DoCo()
