"""NAG, Normalized Attention Guidance (Chen et al., 2025, arXiv 2505.21179): a negative prompt inside cross-attention.

With Z+ what cross-attention gives a place of the picture under its prompt, and Z- what the same queries get under the
concept's names, place by place over all heads,

    Z~ = Z+ + s (Z+ - Z-),    R = |Z~|_1 / |Z+|_1
    Z^ = min(R, tau) / R Z~,  Z  = alpha Z^ + (1 - alpha) Z+

Bounding the norm keeps features where the model knows them, so that few-step models take it, which cannot take
guidance: it acts at CFG 1. With guidance it acts on the prompt's side alone, before guidance.

Z is taken before the layer's output projection. s counts from 0 here; where a program writes s Z+ - (s - 1) Z-, its s
is one more. The formula is the paper's. That s and tau are published as 5 and 2.5, and alpha as 0.25 to 0.5 by model,
was not checked against the paper's tables. No official code was read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ConceptError
from ..guard import Guarding, guarded_names
from ..sites import A_UNET
from ..spec import MethodSpec, Parameter, Value
from ..task import Task
from ..window import Window, window_of, window_settings

_SMALL = 1e-12


@dataclass(frozen=True, eq=False)
class Normalised:
    """The attention part.

    Attributes:
        states: features of the concept's names, `[m, d]`.
        window: when it acts.
        scale, most, share: s, tau, alpha.
    """

    states: Tensor
    window: Window
    scale: float
    most: float
    share: float

    def mix(self, said: Tensor, unsaid: Tensor) -> Tensor:
        pushed = said.float() + self.scale * (said.float() - unsaid.float())
        own, length = (z.float().abs().sum(-1, keepdim=True).clamp(min=_SMALL) for z in (said, pushed))
        bounded = pushed * (self.most * own / length).clamp(max=1)
        return torch.lerp(said.float(), bounded, self.share).to(said.dtype)


class NAG:
    """Pushes cross-attention away from the concept, within a bound."""

    needs = (
        "Needs a UNet, in whose cross-attention it acts. Works at CFG 1 and on few-step models. Costs one more "
        "cross-attention per layer; no further prediction."
    )
    spec = MethodSpec(
        name="nag",
        title="Normalized Attention Guidance",
        paper="Chen et al., Normalized Attention Guidance: Universal Negative Guidance for Diffusion Models, 2025 "
        "(arXiv 2505.21179)",
        summary="Pushes what cross-attention gives away from the concept, within a bound, without guidance.",
        families=("demo",),
        parameters=(
            Parameter(
                "scale",
                5.0,
                "How far it is pushed away from the concept, 0 to 20. Start at 5, as published for Stable Diffusion; "
                "0 does nothing.",
                maximum=20.0,
                step=0.1,
            ),
            Parameter(
                "most",
                2.5,
                "tau: how many times the norm it had the pushed output may have, 1 to 10. 2.5 as published.",
                minimum=1.0,
                maximum=10.0,
                step=0.1,
            ),
            Parameter(
                "share",
                0.5,
                "alpha: share of the pushed output in the result, 0 to 1. Published: 0.25 to 0.5; 0 does nothing.",
            ),
            *window_settings(),
        ),
        wants=(A_UNET,),
        small={"share": 0.75, "start": 0.2},
    )

    def plan(self, task: Task, settings: Mapping[str, Value]) -> Guarding:
        """An attention part with the concepts' names."""
        window, states = window_of(settings), named_states(task)
        scale, most, share = (float(settings[name]) for name in ("scale", "most", "share"))
        return Guarding(attention=Normalised(states, window, scale, most, share) if scale * share else None)


def named_states(task: Task) -> Tensor:
    """Features of all names in one prompt, `[m, d]`; of one prompt each where they are too many for one."""
    names = guarded_names(task)
    try:
        return task.encode([", ".join(names)])[0].states
    except ConceptError:
        return torch.cat([prompt.states for prompt in task.encode(list(names))])


GUARD = NAG()
