"""SLD, Safe Latent Diffusion (Schramowski et al., CVPR 2023, arXiv 2211.05105).

Beside the prompt p and the empty prompt u the model predicts for a safety text s. At every step, element by element,

    mu    = min(1, s_S |p - s|)  where p - s < lambda,  else 0
    gamma = mu (s - u) + s_m nu
    nu   <- beta nu + (1 - beta) gamma            nu = 0 at first; during the warm-up as well
    p    <- p - gamma                             after the warm-up

and guidance goes on with p. The comparison with lambda is signed, so that at lambda = 1 nearly everything counts.

The paper prints the maximum of 1 and s_S |p - s|; its program takes the minimum, as here, which is what keeps mu a
share. The warm-up is a share of sampling here, counted there in steps of 50. The safety text is the concepts' own
names behind the words that diffusers' pipeline puts there, not the paper's list of everything inappropriate.
`weak` has s_S = 200 in the paper and 20 in its program, as here.
Official code read, not copied: ml-research/safe-latent-diffusion.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..guard import Guarding, Look, guarded_names
from ..spec import MethodSpec, Parameter, Value
from ..task import Task
from ..window import Window

_FREE = "free"
_PRESETS: Mapping[str, tuple[float, float, float, float, float]] = {
    "weak": (0.3, 20.0, 0.0, 0.0, 0.0),
    "medium": (0.2, 1000.0, 0.01, 0.3, 0.4),
    "strong": (0.14, 2000.0, 0.025, 0.5, 0.7),
    "max": (0.0, 5000.0, 1.0, 0.5, 0.7),
}
_MOMENTUM = "momentum"
PREFIX = "an image showing "


@dataclass(frozen=True)
class SafetyGuidance:
    """The mix: p - gamma in place of p.

    Attributes:
        safety: the safety text.
        warmup: delta, share of sampling that is left as it is.
        scale: s_S.
        threshold: lambda.
        momentum_scale: s_m.
        momentum: beta.
    """

    safety: str
    warmup: float
    scale: float
    threshold: float
    momentum_scale: float
    momentum: float

    def __call__(self, look: Look) -> tuple[Tensor, Tensor]:
        said, unsaid, safe = (look.predicted(d) for d in (look.said, look.unsaid, look.seen[self.safety]))
        apart = said - safe
        share = torch.where(apart < self.threshold, (self.scale * apart.abs()).clamp(max=1), 0)
        before = look.memory.get(_MOMENTUM, torch.zeros_like(share))
        gamma = share * (safe - unsaid) + self.momentum_scale * before
        look.memory[_MOMENTUM] = self.momentum * before + (1 - self.momentum) * gamma
        if look.percent < self.warmup:
            return look.said, look.unsaid
        return look.shifted(look.said, gamma), look.unsaid


class SLD:
    """Guides away from a safety text, where the prompt leans towards it."""

    needs = "Works with any model, at CFG 1 too. One prediction more per step, two at CFG 1."
    spec = MethodSpec(
        name="sld",
        title="Safe Latent Diffusion",
        paper="Schramowski et al., Safe Latent Diffusion, CVPR 2023 (arXiv 2211.05105)",
        summary="Guides away from the concept where the prompt's own prediction leans towards it.",
        families=("demo",),
        parameters=(
            Parameter(
                "strength",
                "medium",
                "The published sets of settings: weak, medium, strong, max; or the ones below (free). Start with "
                "medium; max changes the composition of harmless prompts too.",
                choices=(*_PRESETS, _FREE),
            ),
            Parameter(
                "warmup",
                0.2,
                "For free: share of sampling that is left as it is, 0 to 0.99. 0.3, 0.2, 0.14, 0 as published, from "
                "weak to max.",
                maximum=0.99,
                advanced=True,
            ),
            Parameter(
                "scale",
                1000.0,
                "For free: how soon a difference of predictions counts in full, 0 to 10000. Published: 20, 1000, 2000, "
                "5000.",
                maximum=10000.0,
                step=1.0,
                advanced=True,
            ),
            Parameter(
                "threshold",
                0.01,
                "For free: the prompt's prediction counts where it exceeds the concept's by less than this, 0 to 1. "
                "Published: 0, 0.01, 0.025, 1. At 1 nearly everything counts.",
                step=0.001,
                advanced=True,
            ),
            Parameter(
                "momentum_scale",
                0.3,
                "For free: how much of the push of earlier steps is added, 0 to 1. Published: 0, 0.3, 0.5, 0.5.",
                advanced=True,
            ),
            Parameter(
                "momentum",
                0.4,
                "For free: how slowly the remembered push follows, 0 to 0.99. Published: 0, 0.4, 0.7, 0.7.",
                maximum=0.99,
                advanced=True,
            ),
        ),
        small={"strength": "max"},
    )

    def plan(self, task: Task, settings: Mapping[str, Value]) -> Guarding:
        """One prompt more: the concepts' names."""
        names = guarded_names(task)
        safety, chosen = PREFIX + ", ".join(names), str(settings["strength"])
        free = (float(settings[name]) for name in ("warmup", "scale", "threshold", "momentum_scale", "momentum"))
        values = tuple(free) if chosen == _FREE else _PRESETS[chosen]
        mix = SafetyGuidance(safety, *values)
        # Without momentum nothing has to be known of the steps before.
        return Guarding((safety,), mix, Window() if mix.momentum_scale else Window(mix.warmup))


GUARD = SLD()
