"""An adversary in the encoded prompt: projected gradient descent, as RACE has it (Kim et al., arXiv 2405.16341).

From a random start in a box around the prompt's features e, steps along the sign of the gradient look for features
under which the student predicts the noise z that the latents came from:

    delta <- delta - alpha sign( grad mse( z, S(x, t, e + delta) ) ),    |delta| <= eps,    alpha = eps / 4

Features also stay between the least and the greatest entry of e. For latents of a rollout z is the noise that it
started from, which is only about what is left of it in x: so it is in the paper's program, and for a direction it does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..algebra.hooks import gradients
from .moment import CONCEPT, MAIN, STUDENT, Ask, Features, Latents, Moment
from .run import Run
from .space import FLOW, denoised_from, wide

_SHARE = 4
"""A step is the bound divided by this."""


@dataclass(frozen=True)
class Pgd:
    """Features of a role's prompts, moved by at most `bound` in every entry; pooled features stay.

    Attributes:
        bound: eps; 0 for the features themselves.
        steps: of the search.
        role: whose features are attacked.
        at: name of the latents; they carry `noise`.
    """

    bound: float = 0.1
    steps: int = 10
    role: str = CONCEPT
    at: str = MAIN

    def make(self, run: Run, moment: Moment) -> Features:
        latents = moment[self.at]
        plain = run.of_role(Ask(STUDENT, self.role, self.at), latents)
        if not self.bound:
            return plain
        states = plain.states
        least, most = states.amin((1, 2), keepdim=True), states.amax((1, 2), keepdim=True)
        start = torch.rand(states.shape, generator=run.generator) * 2 - 1
        moved = (states + start.to(states) * self.bound).clamp(least, most)
        for _ in range(self.steps):
            moved = moved - self.bound / _SHARE * self._slope(run, latents, replace(plain, states=moved)).sign()
            moved = (states + (moved - states).clamp(-self.bound, self.bound)).clamp(least, most)
        return replace(plain, states=moved)

    def _slope(self, run: Run, latents: Latents, features: Features) -> Tensor:
        """Gradient of the attack's loss with respect to the states."""
        assert latents.noise is not None
        with gradients(run.model.in_place):
            states = features.states.detach().clone().requires_grad_()
            said = run.student(latents, replace(features, states=states))
            error = noise_in(run.model.prediction(), latents.x, latents.sigma, said) - latents.noise
            return torch.autograd.grad(error.square().mean(), [states])[0]


def noise_in(kind: str, x: Tensor, sigma: Tensor, own: Tensor) -> Tensor:
    """The noise that a prediction in the model's own space sees in latents `x` `[n, c, h, w]` at levels `[n]`."""
    s = wide(sigma, x)
    return x + (1 - s) * own if kind == FLOW else (x - denoised_from(kind, x, sigma, own)) / s
