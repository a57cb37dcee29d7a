"""A-STAR (Agarwal et al., ICCV 2023, arXiv 2306.14544): words are kept from looking at the same places.

With A^m the share of attention that a prompt's own token m gets at each place (nudge.py), and B^m its map at the step
before, 1 where it exceeded half of its most and 0 elsewhere,

    segregation   L_seg = sum over pairs  sum_ij min(A^m, A^n) / sum_ij (A^m + A^n)
    retention     L_ret = sum over m      1 - sum_ij min(A^m, B^m) / sum_ij (A^m + B^m)

and the latents go down the gradient of both. Published so that every object of a prompt is drawn, for pairs of all its
objects. Here pairs are of a token of the concept's names and one of another word, and only the other words' places are
retained; with `lose` L_ret of the concept's tokens is taken off, so that they leave the place they had.

The step is Attend-and-Excite's, and all losses have weight 1: the paper's own constants were not checked. No official
code was found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..guard import Guarding, guarded_names
from ..nudge import nudge_of, nudge_settings
from ..sites import A_UNET
from ..spec import MethodSpec, Parameter, Value
from ..task import Task
from ..window import Window

_BEFORE = "before"
_HALF, _SMALL = 0.5, 1e-12


def overlap(one: Tensor, other: Tensor) -> Tensor:
    """sum min(a, b) / sum (a + b) over the places of maps `[..., h, w]`; 0 to a half."""
    axes = (-2, -1)
    return torch.minimum(one, other).sum(axes) / (one + other).sum(axes).clamp(min=_SMALL)


@dataclass(frozen=True)
class Segregation:
    """The loss.

    Attributes:
        retain, lose: weights of the other words' retention and, taken off, of the concept's.
    """

    retain: float
    lose: float

    def __call__(self, maps: Tensor, named: Tensor, memory: dict[str, Tensor]) -> Tensor:
        loss = overlap(maps[named][:, None], maps[~named]).sum()
        before = memory.get(_BEFORE)
        memory[_BEFORE] = (maps > _HALF * maps.amax((1, 2), keepdim=True)).to(maps).detach()
        if before is None:
            return loss
        left = 1 - overlap(maps, before)
        return loss + self.retain * left[~named].sum() - self.lose * left[named].sum()


class AStar:
    """Moves the latents so that the concept's words and the others look at different places."""

    needs = (
        "Experimental. Needs a UNet, in whose cross-attention it looks, and the prompt's tokens, so encode the prompt "
        "with this node's CLIP. Acts where the concept's name stands in the prompt beside other words, at CFG 1 too. "
        "Costs a prediction with gradients, two to three times a plain one and its memory, per round and step."
    )
    spec = MethodSpec(
        name="a_star",
        title="A-STAR",
        paper="Agarwal et al., A-STAR: Test-time Attention Segregation and Retention for Text-to-image Synthesis, ICCV "
        "2023 (arXiv 2306.14544)",
        summary="Experimental: moves the latents so that the concept's words look away from what others draw.",
        families=("demo",),
        parameters=(
            *nudge_settings(20.0, 0.5, "as in Attend-and-Excite"),
            Parameter(
                "retain",
                1.0,
                "Weight of the other words' staying where they looked at the step before, 0 to 10. Start at 1.",
                maximum=10.0,
                step=0.1,
            ),
            Parameter(
                "lose",
                1.0,
                "Weight of the concept's words' leaving where they looked at the step before, 0 to 10. Start at 1; 0 "
                "as published, which erases nothing.",
                maximum=10.0,
                step=0.1,
            ),
        ),
        wants=(A_UNET,),
        small={"alpha": 300.0, "end": 1.0},
    )

    def plan(self, task: Task, settings: Mapping[str, Value]) -> Guarding:
        """A nudge that reads the prompt's tokens."""
        alpha, rounds = float(settings["alpha"]), int(settings["rounds"])
        loss = Segregation(float(settings["retain"]), float(settings["lose"]))
        nudge = nudge_of(task, guarded_names(task), loss, Window(0.0, float(settings["end"])), alpha, rounds)
        return Guarding(nudge=nudge, reader=nudge) if alpha else Guarding()


GUARD = AStar()
