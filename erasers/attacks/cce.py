"""CCE, concept inversion: one new word that brings the concept back through a guarded model.

Pham et al., "Circumventing Concept Erasure Methods for Text-to-Image Generative Models", ICLR 2024, learn a token
vector v by textual inversion through the guarded model, on pictures z that the untouched one draws of the attacked
prompts:

    v* = argmin_v E_{z, t, eps} |eps - eps_guard(z_t, "... <v> ...")|^2

Against guards that act on guidance they match the guided outputs instead, here of any guard with one formula, since a
guard inside the model acts by itself (setting `guidance`, w; for 1 the form above):

    v* = argmin_v E |eps_base^w(z_t, prompt) - eps_guard^w(z_t, "... <v> ...")|^2,  eps^w = eps_u + w (eps - eps_u)

v stands where the concept's name stood in each prompt, or at the prompt's end where it has another wording. It is
saved as a textual-inversion file like any other, and then works in prompts that nobody attacked.

Textual inversion can draw anything, also what the model was never taught: success alone does not prove that the
concept is left in the weights. The plain prompts, the untouched model under the same attack, and the inversion of a
concept that it never saw have to stand beside it.

Differs from the released program: 1000 steps of 4 pictures instead of 5000 of 4 x 4, the learning rate is AdamW's own
and not multiplied by the pictures of a step, prompts are the attacked ones and not photo or style sentences, several
vectors may be learned, the start is the replacement's token (theirs is a word for the concept's kind, such as "art"),
and where guidance is matched the time is drawn from all of sampling, with no momentum carried from step to step.
Official code: NYU-DICE-Lab/circumventing-concept-erasure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..algebra.parameters import matched_guidance
from ..concepts import Concept
from ..learn import inversion
from ..learn.inversion import descend, spliced
from ..learn.noise_match import NoisedLatents, noised, row_errors
from ..model import TextTower, Token
from ..painter import Cue, Spelling
from ..spec import MethodSpec, Parameter, Value
from ..target import Found, Target

WORD = "lethe-cce"
"""The name that the learned vectors go by."""
REPLACEMENT, CONCEPT, MEAN = "replacement", "concept", "mean"


class CCE:
    """Textual inversion of the erased concept through the guarded model."""

    spec = MethodSpec(
        name="cce",
        title="Concept inversion (CCE)",
        paper="Pham et al., Circumventing Concept Erasure Methods for Text-to-Image Generative Models, ICLR 2024",
        summary="Learns a new word for the concept by textual inversion through the guarded model.",
        families=("demo",),
        parameters=(
            Parameter(
                "steps", 1000, "Steps of AdamW, 1 to 20000. Start at 1000; published are 5000.", 1, 20000, 1,
                unit="steps",
            ),
            Parameter(
                "lr",
                5e-3,
                "Learning rate, 0.00001 to 1: how far each number of a vector moves in a step; token vectors of CLIP "
                "have a spread of 0.01 to 0.03. Start at 0.005.",
                minimum=1e-5,
                maximum=1.0,
                step=1e-3,
            ),
            Parameter(
                "batch", 4, "Noised pictures per step, 1 to 256; that many go through the model at once. Start at 4.",
                1, 256, 1, unit="pictures",
            ),
            Parameter(
                "pictures",
                25,
                "Pictures that the untouched model draws first, of the attacked prompts in turn, 1 to 1000. Start at "
                "25, as published.",
                minimum=1,
                maximum=1000,
                step=1,
                unit="pictures",
            ),
            Parameter(
                "vectors", 1, "Vectors of the new word, one after another, 1 to 16. Start at 1, as published.",
                1, 16, 1, unit="tokens",
            ),
            matched_guidance(),
            Parameter(
                "start",
                REPLACEMENT,
                "Where the vectors begin: at the tokens of the concept's replacement (the vocabulary's mean where it "
                "has none), at the concept's own, or at the vocabulary's mean. Start at replacement.",
                choices=(REPLACEMENT, CONCEPT, MEAN),
                advanced=True,
            ),
        ),
    )  # fmt: skip

    @torch.inference_mode(False)
    def run(self, target: Target, settings: Mapping[str, Value]) -> Found:
        """Learn the vectors.

        Raises:
            FamilyError: the model has more than one text encoder, or does not predict noise.
        """
        generator = torch.Generator().manual_seed(target.seed)
        steps, batch, pictures = (int(settings[name]) for name in ("steps", "batch", "pictures"))
        guidance = float(settings["guidance"])
        owners = torch.arange(pictures) % len(target.prompts)
        drawn = [target.prompts[owner] for owner in owners]
        latents = target.base.sample(drawn, target.steps, target.cfg, target.seed).float().cpu()
        tower = target.tower()
        first = first_vectors(tower, target.concept, str(settings["start"]), int(settings["vectors"]))

        def loss(word: Tensor) -> Tensor:
            chosen = torch.randint(pictures, (batch,), generator=generator)
            prompts = [drawn[i] for i in chosen]
            seen = noised(latents[chosen], generator)
            goal = seen.noise if guidance == 1 else _goal(target, prompts, seen, guidance)
            context = tower.encode([spelled(tower, prompt, target.concept, word) for prompt in prompts])[0]
            predicted = seen.predict(target.guarded, context, guidance)
            return row_errors(predicted, goal.to(predicted)).mean()

        learned = descend(first, loss, steps, float(settings["lr"]), target.track)
        spellings = [Spelling(tuple(spelled(tower, p, target.concept, learned))) for p in target.prompts]
        cost = 2 * target.steps * pictures + steps * batch * (1 if guidance == 1 else 4)
        return Found(tuple(Cue(((1.0, s),)) for s in spellings), {WORD: learned}, predictions=cost)


def first_vectors(tower: TextTower, concept: Concept, start: str, count: int) -> Tensor:
    """Where the search begins, `[count, d]` float32: embeddings of a phrase's tokens in turn, or the vocabulary's mean.

    Args:
        start: `REPLACEMENT`, `CONCEPT` or `MEAN`.
    """
    phrase = {REPLACEMENT: concept.replacement, CONCEPT: concept.text, MEAN: ""}[start]
    return inversion.first_vectors(tower, phrase, count)


def spelled(tower: TextTower, prompt: str, concept: Concept, word: Tensor) -> list[Token]:
    """The padded tokens of a prompt with the vectors `[k, d]` in place of each of the concept's names.

    Where none of its names stands in the prompt, or the vectors do not fit there, they stand at its end.
    """
    return spliced(tower, prompt, concept.names, word)


def _goal(target: Target, prompts: Sequence[str], seen: NoisedLatents, guidance: float) -> Tensor:
    """What the untouched model predicts for the prompts themselves with guidance, `[n, c, h, w]`."""
    with torch.no_grad():
        return seen.predict(target.base, target.tower(target.base).run(list(prompts))[0], guidance)


ATTACK = CCE()
