"""Score identity distillation (Zhou et al., arXiv 2404.04057, guided 2406.01561): scores teach how to draw in one step.

From pure noise z at the level of a time t_init the student G gives its denoised latent at once, g. Noised again to a
time t of its own, x, the teacher T and the fake score F look at it; F learns meanwhile to denoise what G draws:

    F:  mse(F_w(x, p), truth),    G:  sum((X_T(p') - X_F(p)) (X_F(p) - g)) / omega,    omega = sg mean|g - X_T(p')|

with guided predictions, X denoised latents, and p' = p unless the teacher shall stand for another prompt. Gradients
reach G through x as well. F has tensors of the student's shape, which start as the student does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .moment import CONCEPT, MAIN, NULL, STUDENT, TEACHER, Ask, Features, Latents, Moment, Scene
from .optimizer import rate_at
from .own_adam import OwnAdam
from .plan import ERASE
from .run import Run
from .space import denoised_from, mixed, own_space
from .spent import carried

FAKE = "fake score"
"""Name of the fake score's tensors in memory."""
_LOW, _HIGH = 0.02, 0.98
"""Times at which what was drawn is looked at, as shares of noise."""


@dataclass(frozen=True)
class PureNoise:
    """Noise alone at one level, where a model of one step begins.

    Attributes:
        scenes: the prompts; each row takes one.
        time: of the level, from 0 (clean) to 1.
        name: of the latents.
    """

    scenes: tuple[Scene, ...]
    time: float
    name: str = MAIN

    def draw(self, run: Run, rows: int) -> Mapping[str, Latents]:
        chosen = torch.randint(len(self.scenes), (rows,), generator=run.generator).tolist()
        noise = torch.randn(rows, *run.model.latent_shape(), generator=run.generator)
        sigma = run.model.level(torch.full((rows,), 1 - self.time))
        x = mixed(run.model.prediction(), torch.zeros_like(noise), noise, sigma)
        return {self.name: Latents(x, sigma, tuple(self.scenes[i] for i in chosen), noise=noise)}


@dataclass(frozen=True)
class Fake:
    """The fake score: where its tensors lie, and how it and the teacher are asked.

    Attributes:
        speed: its learning rate, as a multiple of the student's.
        w: guidance scale of both.
    """

    speed: float
    w: float

    def adam(self, run: Run) -> OwnAdam:
        """Its optimiser at this step."""
        return OwnAdam(FAKE, self.speed * rate_at(run.step, run.schedule), run.schedule.betas)

    def tensors(self, run: Run) -> dict[str, Tensor]:
        """Its tensors, ready for gradients; at the first step those of the student."""
        leaves = self.adam(run).leaves(run, lambda: run.trainables.tensors)
        return {name: leaf.detach().to(run.model.device()).requires_grad_() for name, leaf in leaves.items()}

    def guided(self, run: Run, latents: Latents, role: str) -> Tensor:
        """The guided prediction of whoever the student is at present, in the model's own space."""
        said, unsaid = (run.of_role(Ask(TEACHER, each), latents) for each in (role, NULL))
        x, sigma = torch.cat([latents.x, latents.x]), torch.cat([latents.sigma, latents.sigma])
        own, other = run.student(Latents(x, sigma, ()), Features.joined([said, unsaid])).chunk(2)
        return other + self.w * (own - other)


@dataclass(frozen=True)
class LearnFake:
    """Trains the fake score on what the student draws now; a term without a loss for the student.

    Attributes:
        fake: the fake score.
        sources: of noise and prompts, drawn from anew; each has a step of its own, in turn.
        role: whose prompts are drawn.
        weight, aim: of a term; nothing is added to the loss.
    """

    fake: Fake
    sources: tuple[PureNoise, ...]
    role: str = CONCEPT
    weight: float = 1.0
    aim: str = ERASE

    def asks(self) -> Sequence[Ask]:
        return ()

    def loss(self, run: Run, moment: Moment, seen: Mapping[Ask, Tensor]) -> Tensor:
        for source in self.sources:
            self._step(run, source.draw(run, run.schedule.batch)[source.name])
        return torch.zeros(())

    def _step(self, run: Run, start: Latents) -> None:
        kind = run.model.prediction()
        with torch.no_grad():
            said = run.student(start, run.of_role(Ask(TEACHER, self.role), start))
            drawn = denoised_from(kind, start.x, start.sigma, said)
        latents, leaves = noised(run, drawn, start.scenes), self.fake.tensors(run)
        with run.acting_as(leaves):
            truth = own_space(kind, latents.x, latents.sigma, drawn)
            loss = (self.fake.guided(run, latents, self.role) - truth).square().mean()
            grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        found = {name: grad for name, grad in zip(leaves, grads, strict=True) if grad is not None}
        self.fake.adam(run).step(run, leaves, found)


@dataclass(frozen=True)
class Distil:
    """The student's loss on what it draws in one step; the sum over a picture, the mean over rows.

    Attributes:
        fake: the fake score, which is left as it is.
        teacher: role that the teacher looks at what was drawn for `role` with.
        role: whose prompts are drawn.
        at: name of the noise it begins at.
        weight: factor in the loss.
        aim: ERASE or KEEP.
    """

    fake: Fake
    teacher: str = CONCEPT
    role: str = CONCEPT
    at: str = MAIN
    weight: float = 1.0
    aim: str = ERASE

    def asks(self) -> Sequence[Ask]:
        return [Ask(STUDENT, self.role, self.at)]

    def loss(self, run: Run, moment: Moment, seen: Mapping[Ask, Tensor]) -> Tensor:
        kind, start = run.model.prediction(), moment[self.at]
        drawn = denoised_from(kind, start.x, start.sigma, seen[Ask(STUDENT, self.role, self.at)])
        clean = drawn.detach().requires_grad_()
        latents = noised(run, clean, start.scenes)
        fake = {name: tensor.detach() for name, tensor in self.fake.tensors(run).items()}
        # Each network's gradient towards x is taken where that network is at work.
        x = latents.x.detach().requires_grad_()
        level = Latents(x, latents.sigma, latents.scenes)
        with run.trainables.off():
            real = denoised_from(kind, x, level.sigma, self.fake.guided(run, level, self.teacher))
        with run.acting_as(fake):
            own = denoised_from(kind, x, level.sigma, self.fake.guided(run, level, self.role))
        leaves = [tensor.detach().requires_grad_() for tensor in (real, own, clean)]
        loss = identity_loss(*leaves)
        to_real, to_own, to_clean = torch.autograd.grad(loss, leaves)
        with run.trainables.off():
            (to_x,) = torch.autograd.grad(real, [x], to_real)
        with run.acting_as(fake):
            to_x = to_x + torch.autograd.grad(own, [x], to_own)[0]
        (through,) = torch.autograd.grad(latents.x, [clean], to_x)
        return carried(loss, [drawn], [to_clean + through])


def identity_loss(real: Tensor, fake: Tensor, drawn: Tensor) -> Tensor:
    """Sum of (real - fake) (fake - drawn) over each picture in units of its distance from `real`, mean over rows."""
    omega = (drawn - real).detach().abs().flatten(1).mean(1)
    return (((real - fake) * (fake - drawn)).flatten(1).sum(1) / omega.clamp(min=1e-8)).mean()


def noised(run: Run, clean: Tensor, scenes: tuple[Scene, ...]) -> Latents:
    """Latents with noise mixed in at times of their own; gradients pass."""
    times = _LOW + (_HIGH - _LOW) * torch.rand(len(clean), generator=run.generator)
    noise, sigma = torch.randn(clean.shape, generator=run.generator), run.model.level(1 - times)
    return Latents(mixed(run.model.prediction(), clean, noise, sigma), sigma, scenes, clean.detach(), noise)
