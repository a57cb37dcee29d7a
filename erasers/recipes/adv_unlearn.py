"""AdvUnlearn (Zhang et al., NeurIPS 2024, arXiv 2405.15234): ESD of the text encoder, under attack.

An adversary puts k free vectors v into the prompt that the text encoder E reads, until the student predicts again what
the teacher does (learn/soft_tokens.py). Against it the encoder is trained, while prompts r keep what they mean:

    L = mse( S(x, E(v + c)), T(n) - eta [T(c) - T(n)] ) + gamma mse( S(x_r, E(r)), T(x_r, r) )

The first fifth of the steps goes without the adversary. The denoiser stays as it is, so that the encoder erases in
every model that reads it.

Differs from the official program, where the gradients of the inner steps add up and a prompt is split at words: here
each inner step has its own, and a prompt is split at tokens. One optimiser step has both losses ("reg"), not one of
them each ("iter"). Biases, norms and embeddings are not trained. Latents are at the level that the model is told, and
are used again (`latents` tells otherwise). Prompts are ESD's here (`templates`), and names to keep stand
in the same sentences.

n is the sentence with the replacement, or without the concept (`neutral`). On the demo model that erases 1.00
and keeps 0.93, and attacks that search for words show the concept in 0.12 of the pictures; who hands in features past
the text encoder has it back in 1.00. From the empty prompt, as published for the bare name, and with bare names kept,
it erased 0.88 and kept 0.83. A rate that fell kept more (0.96) and withstood less.
Official code read, not copied: OPTML-Group/AdvUnlearn (CC BY 4.0).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ..learn import settings as shared
from ..learn.after import After
from ..learn.full import Full
from ..learn.low_rank import LowRank
from ..learn.moment import ATTACKED, CONCEPT
from ..learn.plan import Plan, Schedule
from ..learn.regress import same
from ..learn.scenes import concept_scenes, kept_scenes
from ..learn.soft_tokens import BETWEEN, LATEST, PREFIX, RANDOM, Attacked, SoftTokens
from ..learn.switch import Switch
from ..learn.trainables import TEXT
from ..learn.where import TEXT_ALL, TEXT_FEW
from ..learn.wider import Wider
from ..spec import MethodSpec, Parameter, Value
from ..task import Task

_KEPT = "kept"


class AdvUnlearn:
    """Trains the text encoder towards the negatively guided prediction, against free vectors in its input."""

    spec = MethodSpec(
        name="adv_unlearn",
        title="AdvUnlearn",
        paper="Zhang et al., Defensive Unlearning with Adversarial Training for Robust Concept Erasure in Diffusion "
        "Models, NeurIPS 2024 (arXiv 2405.15234)",
        summary="Teaches the text encoder to erase a concept while an adversary adds vectors to the prompt.",
        families=("demo",),
        parameters=(
            Parameter(
                "sites",
                TEXT_ALL,
                "The layers of the text encoder that are trained: all of them (published), or the feed-forward ones "
                "and the last attention.",
                choices=(TEXT_ALL, TEXT_FEW),
            ),
            Parameter(
                "form",
                shared.FULL,
                "Whether layers change freely (full, published) or by matrices of the rank given (low rank), which "
                "makes a small eraser.",
                choices=(shared.FULL, shared.LOW_RANK),
            ),
            shared.eta(1.0, "1 as published"),
            Parameter(
                "gamma",
                1.0,
                "Weight of what is kept, 0 to 100. 1 as published (0.3 for nudity); at 0 all prompts suffer.",
                maximum=100.0,
                step=0.1,
            ),
            Parameter(
                "kept_rows",
                5,
                "Prompts to keep that each step takes for each to erase, 1 to 64; 5 as published. They come from the "
                "preserved ones, names in the sentences of templates. Preserve many: with none there is only the empty "
                "prompt.",
                minimum=1,
                maximum=64,
                step=1,
                unit="prompts",
            ),
            Parameter(
                "attack_steps",
                30,
                "Steps that the adversary takes before each step of the training, 0 to 1000; 30 as published.",
                maximum=1000,
                step=1,
                unit="steps",
            ),
            Parameter(
                "attack_rate",
                1e-3,
                "The adversary's learning rate, 0.00001 to 1; 0.001 as published. Embeddings of tokens are about 0.01 "
                "to 0.1 wide.",
                minimum=1e-5,
                step=1e-5,
                advanced=True,
            ),
            Parameter(
                "tokens",
                1,
                "Vectors that the adversary adds to the prompt, 1 to 16; 1 as published.",
                minimum=1,
                maximum=16,
                step=1,
                unit="tokens",
            ),
            Parameter(
                "place",
                PREFIX,
                "Where they stand: before the prompt's tokens (prefix, published), or after the first half of them.",
                choices=(PREFIX, BETWEEN),
                advanced=True,
            ),
            Parameter(
                "start",
                RANDOM,
                "Where each search begins: at embeddings of random tokens (published), or where the last one ended.",
                choices=(RANDOM, LATEST),
                advanced=True,
            ),
            Parameter(
                "plain",
                0.2,
                "Share of the training without the adversary, at its beginning, 0 to 1; 0.2 as published.",
            ),
            shared.templates(),
            shared.latents("Published: fresh."),
            shared.cfg(3.0),
            shared.sampling_steps(25, 50),
            shared.trajectories(),
            shared.neutral(),
        ),
    )
    schedule = Schedule(steps=1000, rate=1e-5, rank=16)
    small = Schedule(steps=40, rate=1.5e-4, batch=2, rank=8)

    def plan(self, task: Task, settings: Mapping[str, Value]) -> Plan:
        rows = int(settings["kept_rows"])
        rolled = shared.rollout_of(settings, concept_scenes(task, str(settings["templates"])))
        adversary = SoftTokens(
            rolled,
            int(settings["tokens"]),
            str(settings["place"]),
            int(settings["attack_steps"]),
            float(settings["attack_rate"]),
            str(settings["start"]),
        )
        kept = shared.rollout_of(settings, kept_scenes(task, str(settings["templates"])), {_KEPT: (0.0, 1.0)})
        # As much more of what is kept is drawn, so that few trajectories would leave most prompts out.
        kept = replace(kept, kept=max(kept.kept, min(kept.kept * rows, len(kept.scenes))))
        where, full = str(settings["sites"]), settings["form"] == shared.FULL
        return Plan(
            parameters=Full(where, TEXT) if full else LowRank(where, part=TEXT),
            sources=(rolled, Wider(kept, rows)),
            makers={ATTACKED: After(adversary, Switch(float(settings["plain"])))},
            terms=(
                Attacked(shared.guidance_of(settings, ATTACKED), adversary),
                same(CONCEPT, float(settings["gamma"]), _KEPT),
            ),
        )


RECIPE = AdvUnlearn()
