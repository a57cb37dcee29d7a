"""Attentive Eraser (Sun et al., AAAI 2025, arXiv 2412.12974): what stands inside a mask is removed.

Beside the plain prediction e for the empty prompt there is another, e_m, in which self-attention does not look into the
mask (redirect.py). Inside the mask the model is guided from one to the other,

    e' = e + g (e_m - e)

so that what was there, or would come, is drawn as more of what surrounds it. g = 9; s = 0.3 for the first 9 of 50
steps, after a start at a fifth of them; in the second half of the UNet (layers 34 to 69 of SDXL's 70); as published.

Outside the mask the picture's own prompt is drawn, with guidance. The program keeps the outside by pasting the given
picture's latents there at every step, which the host's samplers do with a latent noise mask. It blurs the mask and
takes what is above 0.1; here what is above 0.1 counts, and the host's own nodes grow and blur. The negative that is
connected stands for the empty prompt of e. Features whose places all lie in the mask are left alone. Official code,
of which nothing is used: Anonym0u3/AttentiveEraser.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import SettingError
from ..guard import Guarding, Look
from ..redirect import Redirect
from ..sites import A_MASK, A_UNET
from ..spec import MethodSpec, Parameter, Value
from ..task import Task
from ..window import window_of, window_settings
from ..words import BLOCKS

SECOND_HALF, ALL = "second half", "all"
_EMPTY = ""
_MARKED = 0.1


@dataclass(frozen=True, eq=False)
class Removed:
    """The mix: inside the mask the same denoised latents for prompt and negative, so that guidance changes nothing.

    Attributes:
        scale: g.
        redirect: where the mask is, and what the redirected prediction is for.
    """

    scale: float
    redirect: Redirect

    def __call__(self, look: Look) -> tuple[Tensor, Tensor]:
        # Linear in the predictions with weights that sum to 1, so the same in what they denoise to.
        guided = torch.lerp(look.unsaid, look.seen[self.redirect.prompt], self.scale)
        inside = self.redirect.inside((look.x.shape[-2], look.x.shape[-1])).to(look.x.device)
        return torch.where(inside, guided, look.said), torch.where(inside, guided, look.unsaid)


class AttentiveEraser:
    """Removes what is inside a mask."""

    needs = (
        "Needs a mask, and a UNet, in whose self-attention it acts. To change a picture of yours, give the sampler its "
        "latents with the same mask as latent noise mask, and a denoise of about 0.8. Inside the mask the prompt does "
        "not count; the negative should be empty. Works at CFG 1. Costs one prediction per step, two at CFG 1."
    )
    spec = MethodSpec(
        name="attentive_eraser",
        title="Attentive Eraser",
        paper="Sun et al., Attentive Eraser: Unleashing Diffusion Model's Object Removal Potential via Self-Attention "
        "Redirection Guidance, AAAI 2025 (arXiv 2412.12974)",
        summary="Draws the inside of the connected mask as more of what surrounds it.",
        families=("demo",),
        parameters=(
            Parameter(
                "scale",
                9.0,
                "g: how far it is guided to what surrounds the mask, 0 to 20. 9 as published; 0 does nothing.",
                maximum=20.0,
                step=0.1,
            ),
            Parameter(
                "evenness",
                0.3,
                "s: what early steps scale the likeness by with which the inside chooses what to look at around it, 0 "
                "to 1. 0.3 as published; 0 looks at everything alike, 1 changes nothing.",
            ),
            Parameter(
                "until",
                0.38,
                "Share of sampling at which s ends, 0 to 1. 0.38 as published: 9 steps of 50, after a start at 0.2.",
            ),
            Parameter(
                "layers",
                SECOND_HALF,
                "The part of the UNet whose self-attention is redirected: its second half, as published, or all.",
                choices=(SECOND_HALF, ALL),
                advanced=True,
            ),
            *window_settings(0.0, "as published"),
        ),
        wants=(A_UNET, A_MASK),
    )

    def plan(self, task: Task, settings: Mapping[str, Value]) -> Guarding:
        """A mix, and self-attention that is redirected for it.

        Raises:
            SettingError: there is no mask, or it marks nothing or everything.
        """
        if task.regions is None:
            raise SettingError("Attentive Eraser removes what is inside a mask.", "Connect one to 'mask'.")
        marked = task.regions[0] > _MARKED
        if bool(marked.all()) or not bool(marked.any()):
            problem = "The mask covers the whole picture." if bool(marked.all()) else "The mask is empty."
            raise SettingError(problem, "Mark what is to go, with something around it.")
        scale, window = float(settings["scale"]), window_of(settings)
        blocks = BLOCKS if settings["layers"] == ALL else BLOCKS[-1:]
        part = Redirect(_EMPTY, marked, float(settings["evenness"]), float(settings["until"]), blocks)
        return Guarding((_EMPTY,), Removed(scale, part), window, redirect=part) if scale else Guarding()


GUARD = AttentiveEraser()
