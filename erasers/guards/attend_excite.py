"""Attend-and-Excite (Chefer et al., SIGGRAPH 2023, arXiv 2301.13826), and its inverse: words are kept from looking.

With A_j the share of attention that a prompt's own token j gets at each place (nudge.py), sharpened and smoothed,

    m_j = max over places of G * softmax_j(100 A)_j      G: a Gaussian of 3 x 3 places, sigma 0.5

    suppress    L = sum over the concept's tokens of m_j
    excite      L = max over the concept's tokens of 1 - m_j       as published, so that each is drawn

and the latents go down the gradient of L for the first half of sampling: x <- x - alpha grad L, alpha from 20 to 14.

The inverse is ours. The program takes up to 20 gradients at three of the steps, until m_j is large enough; here as many
as `rounds` says at every step. Edges are repeated under G, where the program mirrors them. Official code read, not
copied: yuval-alaluf/Attend-and-Excite.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..guard import Guarding, guarded_names
from ..measure.heat import smoothed
from ..nudge import nudge_of, nudge_settings
from ..sites import A_UNET
from ..spec import MethodSpec, Parameter, Value
from ..task import Task
from ..window import Window

SUPPRESS, EXCITE = "suppress", "excite"
_SHARP, _SPREAD = 100.0, 0.5


def peaks(maps: Tensor) -> Tensor:
    """m of every token of maps `[t, h, w]`, `[t]`."""
    return smoothed((_SHARP * maps).softmax(0), _SPREAD).flatten(1).amax(1)


def suppressing(maps: Tensor, named: Tensor, memory: dict[str, Tensor]) -> Tensor:
    """The sum of the concept's peaks."""
    return peaks(maps)[named].sum()


def exciting(maps: Tensor, named: Tensor, memory: dict[str, Tensor]) -> Tensor:
    """What the concept's least peak lacks of 1."""
    return (1 - peaks(maps)[named]).amax()


class AttendExcite:
    """Moves the latents so that the concept's words find nothing to look at."""

    needs = (
        "Experimental. Needs a UNet, in whose cross-attention it looks, and the prompt's tokens, so encode the prompt "
        "with this node's CLIP. Acts where the concept's name stands in the prompt, at CFG 1 too. Costs a prediction "
        "with gradients, two to three times a plain one and its memory, per round and step."
    )
    spec = MethodSpec(
        name="attend_excite",
        title="Attend-and-Excite",
        paper="Chefer et al., Attend-and-Excite: Attention-Based Semantic Guidance for Text-to-Image Diffusion Models, "
        "SIGGRAPH 2023 (arXiv 2301.13826)",
        summary="Experimental: moves the latents until the concept's words get no attention anywhere.",
        families=("demo",),
        parameters=(
            Parameter(
                "mode",
                SUPPRESS,
                "Let the concept's words get no attention anywhere (suppress), or a place each, as published, which "
                "draws them (excite). Start with suppress.",
                choices=(SUPPRESS, EXCITE),
            ),
            *nudge_settings(20.0, 0.5, "as published"),
        ),
        wants=(A_UNET,),
        small={"alpha": 1000.0, "end": 1.0},
    )

    def plan(self, task: Task, settings: Mapping[str, Value]) -> Guarding:
        """A nudge that reads the prompt's tokens."""
        loss = suppressing if settings["mode"] == SUPPRESS else exciting
        alpha, rounds = float(settings["alpha"]), int(settings["rounds"])
        nudge = nudge_of(task, guarded_names(task), loss, Window(0.0, float(settings["end"])), alpha, rounds)
        return Guarding(nudge=nudge, reader=nudge) if alpha else Guarding()


GUARD = AttendExcite()
