"""Text features that make a guarded model denoise pictures of the concept (arXiv 2507.16880).

"Finding Dori: Memorization in Text-to-Image Diffusion Models Is Not Local" shows that images which were pruned out of
a model come back from text features that are optimised for them. The features themselves are the unknowns, every token
of them, as they leave the text encoder:

    y* = argmin_y E_{z, t, eps} |eps - eps_guard(z_t, y)|^2

Here z are latents that the untouched model draws of each attacked prompt, and each prompt gets features of its own.
Against guards that act on guidance the guided outputs are matched instead, those of the untouched model for the prompt
(setting `guidance`), as in CCE.

Differs from the paper: it asks for one memorised training image, this for a concept, which is why several pictures of
each prompt are taken: what they share is the concept, and features fitted to one of them would bring back that
picture. The start "noise" is scaled to real features, dimension by dimension. The defaults (50 steps, 0.1, 8 noise
samples, 4 pictures) are ours. The start "prompt" takes the untouched text encoder's features, since features handed
past the text encoder are not touched by an edit of it.

Seventy-seven free vectors can describe a picture that the model was never taught: success alone does not prove that
the concept is left in the model. The untouched model under the same attack, and features for a concept that the model
never saw, have to stand beside it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..algebra.hooks import gradients
from ..algebra.parameters import matched_guidance
from ..learn.noise_match import noised, row_errors
from ..painter import Cue
from ..spec import MethodSpec, Parameter, Value
from ..target import Found, Target

PROMPT, NOISE = "prompt", "noise"


class Dori:
    """The embedding re-trigger: text features fitted to pictures of the concept."""

    spec = MethodSpec(
        name="dori",
        title="Features re-trigger (Dori)",
        paper="Kowalczuk, Hintersdorf, Struppek et al., Finding Dori: Memorization in Text-to-Image Diffusion Models "
        "Is Not Local (arXiv 2507.16880)",
        summary="Optimises the text features themselves until the guarded model denoises pictures of the concept.",
        families=("demo",),
        parameters=(
            Parameter(
                "start",
                PROMPT,
                "Where the features begin: at those of the attacked prompt, or at noise of the same mean and spread in "
                "each dimension. Noise shows whether the concept is reached from far away; start at prompt.",
                choices=(PROMPT, NOISE),
            ),
            Parameter("steps", 50, "Steps of Adam, 1 to 10000. Start at 50.", 1, 10000, 1, unit="steps"),
            Parameter(
                "lr",
                0.1,
                "Learning rate, 0.0001 to 10: how far a feature moves in a step; features of CLIP have a spread of "
                "about 1. Start at 0.1.",
                minimum=1e-4,
                maximum=10.0,
                step=0.01,
            ),
            Parameter(
                "batch",
                8,
                "Noised pictures per prompt and step, 1 to 256; that many go through the model at once. Start at 8.",
                minimum=1,
                maximum=256,
                step=1,
                unit="pictures",
            ),
            Parameter(
                "pictures",
                4,
                "Pictures of each prompt that the untouched model draws first, 1 to 100. Start at 4; one alone is "
                "memorised rather than what it shows.",
                minimum=1,
                maximum=100,
                step=1,
                unit="pictures",
            ),
            matched_guidance(),
        ),
    )

    @torch.inference_mode(False)
    def run(self, target: Target, settings: Mapping[str, Value]) -> Found:
        """Fit features for every prompt.

        Raises:
            FamilyError: the model has more than one text encoder, or does not predict noise.
        """
        generator = torch.Generator().manual_seed(target.seed)
        steps, batch, count = (int(settings[name]) for name in ("steps", "batch", "pictures"))
        repeated = [prompt for prompt in target.prompts for _ in range(count)]
        drawn = target.base.sample(repeated, target.steps, target.cfg, target.seed).float().cpu()
        pictures = drawn.reshape(len(target.prompts), count, *drawn.shape[1:])
        with torch.no_grad():
            features = target.tower(target.base).run(list(target.prompts))[0].float().cpu()
        guidance = float(settings["guidance"])
        wanted = (features if settings["start"] == PROMPT else like(features, generator)).clone().requires_grad_()
        adam = torch.optim.Adam([wanted], lr=float(settings["lr"]))
        for _ in target.track(range(steps), steps):
            wanted.grad = torch.stack(
                [
                    _gradient(target, latents, row, own, batch, guidance, generator)
                    for latents, row, own in zip(pictures, wanted, features, strict=True)
                ]
            )
            adam.step()
        drawing = 2 * target.steps * len(repeated)
        cues = tuple(Cue(((1.0, row.clone()),)) for row in wanted.detach())
        return Found(cues, predictions=drawing + steps * batch * len(cues) * (1 if guidance == 1 else 4))


def like(features: Tensor, generator: torch.Generator) -> Tensor:
    """Normal noise in the shape of features `[n, tokens, d]`, with their mean and spread in each of the d."""
    spread, mean = torch.std_mean(features, dim=(0, 1))
    return mean + spread * torch.randn(features.shape, generator=generator)


def _gradient(
    target: Target,
    latents: Tensor,
    features: Tensor,
    own: Tensor,
    batch: int,
    guidance: float,
    generator: torch.Generator,
) -> Tensor:
    """The gradient of the mean error over freshly noised latents `[n, c, h, w]`, `[tokens, d]`; `own` the prompt's."""
    chosen = torch.randint(len(latents), (batch,), generator=generator)
    seen = noised(latents[chosen], generator)
    with torch.no_grad():
        goal = seen.noise if guidance == 1 else seen.predict(target.base, own.expand(batch, -1, -1), guidance)
    with gradients(target.guarded.in_place):
        row = features.detach().requires_grad_()
        predicted = seen.predict(target.guarded, row.expand(batch, -1, -1), guidance)
        return torch.autograd.grad(row_errors(predicted, goal.to(predicted)).mean(), row)[0]


ATTACK = Dori()
