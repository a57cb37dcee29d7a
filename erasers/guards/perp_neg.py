"""Perp-Neg (Armandpour et al., 2023, arXiv 2304.04968): only what in the negative is not in the prompt is taken away.

With p = eps_p - eps_u and n_k = eps_nk - eps_u,

    n_k' = n_k - (<n_k, p> / |p|^2) p,      eps = eps_u + w (p - sum_k w_k n_k')

so attributes that the concept shares with the prompt stay. A prompt that is the concept is not blocked at all: this is
for side effects, not a safeguard on its own. Inner products are taken picture by picture; in the official program and
in ComfyUI's own node a batch is one vector.
Official code read, not copied: Perp-Neg/Perp-Neg-stablediffusion.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ..guard import Guarding, Look, guarded_names
from ..spec import MethodSpec, Parameter, Value
from ..task import Task
from ..window import window_of, window_settings

_SMALL = 1e-12


@dataclass(frozen=True)
class Perpendicular:
    """The mix: p - sum w_k n_k' in place of p. Prompts of the negatives, and their weight."""

    prompts: tuple[str, ...]
    weight: float

    def __call__(self, look: Look) -> tuple[Tensor, Tensor]:
        # All differences of denoised latents are -sigma times those of predictions: the projection is the same.
        p = look.said - look.unsaid
        away = sum((perpendicular(look.seen[prompt] - look.unsaid, p) for prompt in self.prompts), p * 0)
        return look.said - self.weight * away, look.unsaid


def perpendicular(n: Tensor, p: Tensor) -> Tensor:
    """The part of `n` that is perpendicular to `p`, picture by picture, both `[b, ...]`."""
    axes = tuple(range(1, p.ndim))
    along = (n * p).sum(axes, keepdim=True) / p.square().sum(axes, keepdim=True).clamp(min=_SMALL)
    return n - along * p


class PerpNeg:
    """Takes away of the concept what is perpendicular to the prompt."""

    needs = "Works with any model, at CFG 1 too. One prediction more per step and name of a concept."
    spec = MethodSpec(
        name="perp_neg",
        title="Perp-Neg",
        paper="Armandpour et al., Re-imagine the Negative Prompt Algorithm, 2023 (arXiv 2304.04968)",
        summary="Guides away from what in the concept is not in the prompt; attributes they share stay.",
        families=("demo",),
        parameters=(
            Parameter(
                "weight",
                1.5,
                "Weight of each name of a concept against the prompt, 0 to 10. Start at 1.5, as published.",
                maximum=10.0,
                step=0.1,
            ),
            *window_settings(),
        ),
        small={"weight": 6.0, "start": 0.2},
    )

    def plan(self, task: Task, settings: Mapping[str, Value]) -> Guarding:
        """One prompt more for each name of a concept."""
        names = guarded_names(task)
        return Guarding(names, Perpendicular(names, float(settings["weight"])), window_of(settings))


GUARD = PerpNeg()
