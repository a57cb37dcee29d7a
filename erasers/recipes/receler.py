"""Receler, reliable concept erasing with lightweight erasers (Huang et al., ECCV 2024, arXiv 2311.17717).

A bottleneck behind every cross-attention, o = U gelu(D out), is trained towards ESD's target for the concept's prompt
with m adversarial vectors q behind it (learn/soft_prompt.py), and held back where the concept is not:

    L_erase = mse(S([c, q]), T(n) - eta [T(c) - T(n)])
    L_reg   = mean over bottlenecks of  sum_px (1 - M) mean_ch o^2 / sum_px (1 - M)
    L       = L_erase + 0.1 L_reg

M is the untouched model's attention to the concept's words in the same latents (learn/region.py). n is the sentence
with the replacement, or the empty prompt (`neutral`; published for the bare name).

Differs from the official program: sentences are trained beside the bare name (`templates`); without the attack the
erasers are trained all the same, where the program never trains them; they learn from a prediction of their own after
the attack's last step, not from that step's; the attack's optimiser is AdamW, whose decay does not drown the attack,
and begins anew at each step, while its vectors go on; latents are at the very level that the model is told, come from
the untouched model and are used again (`latents` tells otherwise).
Official code read, not copied: jasper0314-huang/Receler (MIT).
"""

from __future__ import annotations

from collections.abc import Mapping

from ..learn import settings as shared
from ..learn.bottleneck import Bottlenecks
from ..learn.local import Local
from ..learn.moment import ATTACKED
from ..learn.plan import COSINE, Plan, Schedule
from ..learn.region import OwnMaps
from ..learn.scenes import concept_scenes
from ..learn.soft_prompt import SoftPrompt
from ..spec import MethodSpec, Parameter, Value
from ..task import Task


class Receler:
    """Trains bottlenecks beside cross-attention against prompts that bring the concept back."""

    spec = MethodSpec(
        name="receler",
        title="Receler",
        paper="Huang et al., Receler: Reliable Concept Erasing of Text-to-Image Diffusion Models via Lightweight "
        "Erasers, ECCV 2024 (arXiv 2311.17717)",
        summary="Puts small networks behind cross-attention that erase under attack, and only where the concept is.",
        families=("demo",),
        parameters=(
            shared.eta(1.0, "1 as published"),
            Parameter(
                "attack_steps",
                50,
                "Steps of the attack at each step of the training, 0 to 1000; 0 trains without it. 50 as published: "
                "each costs as much as a step of the training.",
                maximum=1000,
                step=1,
                unit="steps",
            ),
            Parameter(
                "attack_tokens",
                16,
                "Vectors that the attack puts behind the concept's words, 1 to 64; 16 as published.",
                minimum=1,
                maximum=64,
                step=1,
                unit="tokens",
                advanced=True,
            ),
            Parameter(
                "attack_rate",
                0.1,
                "Learning rate of the attack, 0.0001 to 10; 0.1 as published.",
                minimum=1e-4,
                maximum=10.0,
                step=0.01,
                advanced=True,
            ),
            Parameter(
                "local_weight",
                0.1,
                "Weight of holding the erasers back where the concept is not, 0 to 1000. Start at 0.1, as published; "
                "higher keeps more of the picture around the concept.",
                maximum=1000.0,
            ),
            Parameter(
                "threshold",
                0.1,
                "Share of the attention's range above which a pixel belongs to the concept, 0 to 1; 0.1 as published. "
                "Lower takes more of the picture for the concept.",
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
    schedule = Schedule(steps=500, rate=3e-4, rank=128)
    small = Schedule(steps=40, rate=6e-3, batch=2, rank=32, course=COSINE)

    def plan(self, task: Task, settings: Mapping[str, Value]) -> Plan:
        scenes = concept_scenes(task, str(settings["templates"]))
        attack = SoftPrompt(
            int(settings["attack_tokens"]), int(settings["attack_steps"]), float(settings["attack_rate"])
        )
        erase, weight = shared.guidance_of(settings, ATTACKED), float(settings["local_weight"])
        local = (Local(OwnMaps(float(settings["threshold"])), weight=weight),) if weight else ()
        return Plan(
            parameters=Bottlenecks(),
            sources=(shared.rollout_of(settings, scenes),),
            terms=(erase, *local),
            makers={ATTACKED: attack},
        )


RECIPE = Receler()
