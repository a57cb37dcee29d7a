"""SFD, score forgetting distillation (Chen et al., ICLR 2025, arXiv 2409.11219).

The student becomes a model that draws in one step, g = G(z, t_init, p), by score identity distillation against the
untouched model T and a fake score F, which learns beside it to denoise what it draws. Where the concept is drawn, T is
asked for its replacement:

    F:  mse(F_w(x, p), noise),    x = g noised to t ~ U(0.02, 0.98)
    G:  kept prompts   sum((X_T(p) - X_F(p)) (X_F(p) - g)) / omega
        the concept    sum((X_T(anchor) - X_F(concept)) (X_F(concept) - g)) / omega,    omega = sg mean|g - X_T|

with guided scores of scale w and denoised latents X. A step trains F on kept prompts, F on the concept, then G on both.

What comes out draws in ONE step, and is no model for the ordinary sampler any more. To draw with it: noise alone, an
empty latent, at the level of t_init; one step of Euler from there to 0; guidance scale 1. In ComfyUI that is
SamplerCustom with cfg 1, KSamplerSelect euler and ManualSigmas "s, 0", where s is what SamplingPercentToSigma gives
for 1 - t_init / 1000: 2.5 for Stable Diffusion's 625.

Differs from the official program, which starts from a generator that was distilled before (here the student is the
untouched model at first, unless training goes on from an eraser, so that it has to learn to draw in one step as well);
the student's two losses share an optimiser step; prompts are not dropped, and there are no negative ones. There, models
that predict v clear their own target; here they do not. With `form` low rank, which the paper does not have, both
networks are adapters, for a tenth of the memory and at a far higher learning rate.
Official code read, not copied: tqch/score-forgetting-distillation (Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ..learn import settings as shared
from ..learn.moment import ANCHOR
from ..learn.one_step import Distil, Fake, LearnFake, PureNoise
from ..learn.plan import KEEP, Plan, Schedule
from ..learn.scenes import concept_scenes, kept_scenes
from ..learn.where import ALL, BLOCKS, CROSS, NOT_CROSS
from ..spec import MethodSpec, Parameter, Value
from ..task import Task

_KEPT = "kept"
_TIMES = 1000


class SFD:
    """Distils the model into one step, with the replacement's score for the concept."""

    spec = MethodSpec(
        name="sfd",
        title="SFD",
        paper="Chen et al., Score Forgetting Distillation: A Swift, Data-Free Method for Machine Unlearning in "
        "Diffusion Models, ICLR 2025 (arXiv 2409.11219)",
        summary="Teaches the model to draw in one step, with the replacement's score in place of the concept's. The "
        "result draws in one step alone: from the level of t_init to 0, with CFG 1.",
        families=(),
        parameters=(
            shared.where(ALL, (ALL, NOT_CROSS, BLOCKS, CROSS), "Published: all."),
            replace(shared.form(shared.FULL), choices=(shared.FULL, shared.LOW_RANK)),
            Parameter(
                "t_init",
                625,
                "Time of the one step, of 1000, 1 to 999: draw with one step of Euler from its level to 0, on an empty "
                "latent, with CFG 1. Start at 625, as published. Higher starts from more noise: more variety, less "
                "detail.",
                minimum=1,
                maximum=999,
                step=1,
            ),
            Parameter(
                "guidance",
                4.5,
                "Guidance scale of both scores, which the one step learns to draw as if by, 1 to 30; 4.5 as published.",
                minimum=1.0,
                maximum=30.0,
                step=0.1,
            ),
            Parameter(
                "fake_speed",
                3.0,
                "Learning rate of the fake score, as a multiple of the student's, 0.1 to 100; 3 as published. Higher "
                "follows the student better, and forgets faster what it drew before.",
                minimum=0.1,
                maximum=100.0,
                step=0.1,
                advanced=True,
            ),
            shared.templates(published="sentences from a file"),
        ),
    )
    schedule = Schedule(steps=12500, rate=1e-6, batch=8, rank=16, betas=(0.0, 0.999))
    small = Schedule(steps=40, rate=1e-4, batch=4, rank=8, betas=(0.0, 0.999))

    def plan(self, task: Task, settings: Mapping[str, Value]) -> Plan:
        time = int(settings["t_init"]) / _TIMES
        forget = PureNoise(concept_scenes(task, str(settings["templates"])), time)
        kept = PureNoise(kept_scenes(task), time, _KEPT)
        fake = Fake(float(settings["fake_speed"]), float(settings["guidance"]))
        return Plan(
            parameters=shared.parameters_of(settings),
            sources=(kept, forget),
            terms=(LearnFake(fake, (kept, forget)), Distil(fake, at=_KEPT, aim=KEEP), Distil(fake, ANCHOR)),
        )


RECIPE = SFD()
