"""NegToMe, negative token merging (Singh et al., 2024): features of a picture are pushed away from a reference picture.

The reference, noised to the step's own level, goes through the model beside the pictures. After attention, with o_i the
features of a picture's places and r_j those of the reference's,

    j*(i) = argmax_j cos(o_i, r_j)
    o_i <- (1 + alpha) o_i - alpha r_j*(i)   where cos(o_i, r_j*(i)) > tau

The references are the pictures that are connected; without any, the model draws the concept's own names beforehand. As
published it acts on the prompt's and on the negative's side, after self- and cross-attention of the UNet's output
blocks, where features are not too coarse, in the first fifth of sampling. How coarse is a share of the picture here, a
number of places there. The published program takes the largest similarity over the picture's places and picks the
reference's by that index, which is the transpose of the formula; this is the formula. Its masks are not here.
Official code read, not copied: 1jsingh/negtome.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ..guard import Guarding, guarded_names
from ..sites import A_UNET
from ..spec import MethodSpec, Parameter, Value
from ..task import Task
from ..window import Window, window_of, window_settings

SELF, BOTH = "self", "both"
_BLOCK = "output"
_STEPS, _CFG, _SEED = 20, 5.0, 0
"""How references are drawn."""
_MOST = 2**24
"""Similarities that are held at a time: 64 MiB."""


@dataclass(frozen=True, eq=False)
class Pushed:
    """The part for reference pictures.

    Attributes:
        latents: of the references, `[r, c, h, w]`.
        window: when it acts.
        alpha, threshold: alpha and tau.
        coarsest: how many times smaller than the latents features may be.
        attention: SELF or BOTH.
    """

    latents: Tensor
    window: Window
    alpha: float
    threshold: float
    coarsest: float
    attention: str

    def acts(self, block: str, crosses: bool, reduction: float) -> bool:
        return block == _BLOCK and reduction <= self.coarsest and (self.attention == BOTH or not crosses)

    def push(self, features: Tensor, others: Tensor) -> Tensor:
        rows = max(1, _MOST // len(others))
        places = features.flatten(0, 1)
        moved = [self._pushed(part, others) for part in places.split(rows)]
        return torch.cat(moved).view_as(features)

    def _pushed(self, places: Tensor, others: Tensor) -> Tensor:
        likeness, nearest = (functional.normalize(places, dim=1) @ functional.normalize(others, dim=1).T).max(1)
        away = (1 + self.alpha) * places - self.alpha * others[nearest]
        return torch.where((likeness > self.threshold)[:, None], away, places)


class NegToMe:
    """Pushes a picture's features away from those of a picture of the concept."""

    needs = (
        "Needs a UNet. Works at CFG 1. Pictures of the concept and a VAE may be connected; without them the model "
        "draws the concept first. While it acts, each reference costs as much as one more picture in the batch."
    )
    spec = MethodSpec(
        name="negtome",
        title="NegToMe",
        paper="Singh et al., Negative Token Merging: Image-based Adversarial Feature Guidance, 2024",
        summary="Pushes each place of the picture away from the place of a reference picture that is most like it.",
        families=("demo",),
        parameters=(
            Parameter(
                "alpha",
                0.9,
                "How far features are pushed, 0 to 3. Start at 0.9, as published; 0 does nothing, much more makes "
                "noise.",
                maximum=3.0,
            ),
            Parameter(
                "threshold",
                0.7,
                "tau: features are pushed away from a place of the reference at least this much like them, -1 to 1. "
                "Published: 0.7 for SDXL. Lower pushes more of the picture.",
                minimum=-1.0,
            ),
            Parameter(
                "pictures",
                1,
                "References for each concept, 1 to 16: the first ones that are connected, or as many drawn. 1 as "
                "published.",
                minimum=1,
                maximum=16,
            ),
            Parameter(
                "attention",
                BOTH,
                "After which attention it acts: self-attention alone, or self- and cross-attention (both, as "
                "published).",
                choices=(BOTH, SELF),
                advanced=True,
            ),
            Parameter(
                "coarsest",
                4.0,
                "Layers act whose features are at most this many times smaller than the latents, 1 to 16. Published "
                "for SDXL: features of 32 places a side of 128.",
                minimum=1.0,
                maximum=16.0,
                step=1.0,
                advanced=True,
            ),
            *window_settings(0.0, "as published"),
        ),
        wants=(A_UNET,),
        small={"alpha": 2.0, "threshold": 0.8, "coarsest": 16.0, "pictures": 4},
    )

    def plan(self, task: Task, settings: Mapping[str, Value]) -> Guarding:
        """A part for the pictures that were given, or for pictures that are drawn now."""
        names, alpha = guarded_names(task), float(settings["alpha"])
        if not alpha:
            return Guarding()
        count = int(settings["pictures"])
        latents = task.pictures
        if latents is None:
            prompts = [concept.text for concept in task.concepts.erase for _ in range(count)] or list(names)
            latents = task.loaded().sample(prompts, _STEPS, _CFG, _SEED)
        part = Pushed(
            latents[: count * len(task.concepts.erase)].float(),
            window_of(settings),
            alpha,
            float(settings["threshold"]),
            float(settings["coarsest"]),
            str(settings["attention"]),
        )
        return Guarding(beside=part)


GUARD = NegToMe()
