"""How far training has moved what a model predicts, in units of a prompt's own pull: cheap enough to look at often."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .moment import STUDENT, Features, Latents
from .rollout import levels, roll
from .run import Run

_STEPS = 6


class Shift:
    """Latents along the untouched model's way to some prompts, and its predictions there.

    Args:
        prompts: one row each.
    """

    def __init__(self, run: Run, prompts: Sequence[str], cfg: float = 3.0) -> None:
        self.prompts = list(prompts)
        generator, shape = run.fork("shift"), run.model.latent_shape()
        noise = torch.randn(1, *shape, generator=generator).expand(len(prompts), *shape)
        sigmas = levels(run.model, _STEPS)
        said, unsaid = run.features(self.prompts), run.features([""] * len(prompts))
        seen: list[tuple[Tensor, Tensor, Tensor]] = []
        roll(
            run.model, run.teacher, noise * sigmas[0], sigmas, said, unsaid, cfg, lambda x, own: seen.append((x, *own))
        )
        self.x, self.said, unsaid_there = (torch.cat(column) for column in zip(*seen, strict=True))
        self.sigma = sigmas[:-1].repeat_interleave(len(prompts))
        self.pull = self._by_prompt(self.said - unsaid_there)

    def look(self, run: Run) -> list[float]:
        """|S(prompt) - T(prompt)| / |T(prompt) - T(null)| of each prompt: 0 untouched, 1 as far as the empty prompt."""
        with torch.no_grad():
            own = run.features(self.prompts, STUDENT)
            said = run.student(Latents(self.x, self.sigma, ()), Features.joined([own] * _STEPS))
        moved = self._by_prompt(said - self.said)
        return [a / b if b else 0.0 for a, b in zip(moved, self.pull, strict=True)]

    def _by_prompt(self, difference: Tensor) -> list[float]:
        rows = difference.flatten(1).norm(dim=1).square().view(_STEPS, len(self.prompts)).sum(0)
        return rows.sqrt().tolist()
