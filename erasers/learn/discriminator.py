"""A discriminator of latents that trains beside the student, and terms that play against it.

Its weights and its optimiser's state lie in the run's memory, so that a run that goes on from a state plays on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from .moment import ANCHOR, CONCEPT, MAIN, STUDENT, TEACHER, Ask, Moment
from .plan import ERASE, Wrapped
from .run import Run
from .space import denoised_from

REAL, FAKE = 0.0, 1.0
"""Labels."""
_WIDTHS = (64, 128, 256, 512, 1)
_KEPT, _FIRST, _SECOND, _COUNT, _BEGIN = "discriminator.", "moment.", "square.", "discriminator.count", "head start"
_EPS = 1e-8


def fresh(shape: Sequence[int], generator: torch.Generator) -> dict[str, Tensor]:
    """Weights of a PatchGAN for latents of a shape `(c, h, w)`: 4x4 convolutions that halve the map.

    Latents below 64x64 are halved less often: where a map has come down to 2x2, kernels are 3x3 and keep its size.
    """
    found, last, side = dict[str, Tensor](), shape[0], min(shape[1:])
    for index, width in enumerate(_WIDTHS):
        kernel = 4 if side >= 4 else 3
        side = side // 2 if kernel == 4 else side
        found[f"{index}.weight"] = torch.randn(width, last, kernel, kernel, generator=generator) * 0.02
        if 0 < index < len(_WIDTHS) - 1:
            # Normalised over the batch, which takes a bias away again.
            found |= {f"{index}.scale": torch.ones(width), f"{index}.shift": torch.zeros(width)}
        else:
            found[f"{index}.bias"] = torch.zeros(width)
        last = width
    return found


def judged(weights: Mapping[str, Tensor], latents: Tensor) -> Tensor:
    """Logits of latents `[n, c, h, w]` being fake, one per patch, `[n, 1, h', w']`."""
    x = latents
    for index in range(len(_WIDTHS)):
        weight = weights[f"{index}.weight"]
        stride = 2 if weight.shape[-1] == 4 else 1
        x = functional.conv2d(x, weight, weights.get(f"{index}.bias"), stride, padding=1)
        if f"{index}.scale" in weights:
            x = functional.batch_norm(
                x, None, None, weights[f"{index}.scale"], weights[f"{index}.shift"], training=True
            )
        if index < len(_WIDTHS) - 1:
            x = functional.leaky_relu(x, 0.2)
    return x


def called(logits: Tensor, label: float) -> Tensor:
    """Cross-entropy of logits against one label."""
    return functional.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))


@dataclass(frozen=True)
class Domain:
    """The student's denoised latents under one role shall pass for the teacher's under another (DoCo).

    real = X0(T(x, anchor)), fake = X0(S(x, concept)) for the same x; the loss is that of calling the fake real. Then
    the discriminator takes one step of Adam on calling each what it is, on the very same latents. In the first part of
    training it learns alone.

    Attributes:
        rate, betas: of the discriminator's Adam.
        head_start: share of the steps in which the discriminator learns alone.
        role, real: what is trained, and what it shall pass for.
        at: name of the latents.
        weight: factor in the loss.
        aim: ERASE or KEEP.
    """

    rate: float
    head_start: float = 0.5
    betas: tuple[float, float] = (0.5, 0.999)
    role: str = CONCEPT
    real: str = ANCHOR
    at: str = MAIN
    weight: float = 1.0
    aim: str = ERASE

    def asks(self) -> Sequence[Ask]:
        return [Ask(STUDENT, self.role, self.at), Ask(TEACHER, self.real, self.at)]

    def loss(self, run: Run, moment: Moment, seen: Mapping[Ask, Tensor]) -> Tensor:
        latents, kind, device = moment[self.at], run.model.prediction(), run.model.device()
        fake, real = (denoised_from(kind, latents.x, latents.sigma, seen[ask]).to(device) for ask in self.asks())
        weights = self._weights(run)
        loss = called(judged(weights, fake), REAL)
        # The discriminator's new weights are new tensors: the gradients of `loss` are yet to come.
        self._learn(run, weights, fake.detach(), real.detach())
        return loss if has_begun(run, self.head_start) else loss.detach()

    def _weights(self, run: Run) -> dict[str, Tensor]:
        known = {n.removeprefix(_KEPT): t for n, t in run.memory.items() if n.startswith(_KEPT) and n != _COUNT}
        own = {name: tensor for name, tensor in known.items() if not name.startswith((_FIRST, _SECOND))}
        if not own:
            own = fresh(run.model.latent_shape(), run.fork("discriminator"))
        return {name: tensor.to(run.model.device()) for name, tensor in own.items()}

    def _learn(self, run: Run, weights: Mapping[str, Tensor], fake: Tensor, real: Tensor) -> None:
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in weights.items()}
        loss = called(judged(leaves, real), REAL) + called(judged(leaves, fake), FAKE)
        grads = torch.autograd.grad(loss, list(leaves.values()))
        count = run.memory.get(_COUNT, torch.tensor(0)) + 1
        run.memory[_COUNT] = count
        with torch.no_grad():
            for (name, leaf), grad in zip(leaves.items(), grads, strict=True):
                self._step(run, name, leaf.detach(), grad, int(count))

    def _step(self, run: Run, name: str, weight: Tensor, grad: Tensor, count: int) -> None:
        """One step of Adam on one tensor; everything in memory is replaced, nothing changed in place."""
        slow, slower = self.betas
        keys = f"{_KEPT}{_FIRST}{name}", f"{_KEPT}{_SECOND}{name}"
        moment, square = (run.memory[key].to(grad) if key in run.memory else torch.zeros_like(grad) for key in keys)
        moment, square = slow * moment + (1 - slow) * grad, slower * square + (1 - slower) * grad.square()
        run.memory[keys[0]], run.memory[keys[1]] = moment, square
        size = (square / (1 - slower**count)).sqrt() + _EPS
        run.memory[f"{_KEPT}{name}"] = weight - self.rate * moment / (1 - slow**count) / size


@dataclass(frozen=True)
class Later(Wrapped):
    """A term without gradients in the first part of training.

    Attributes:
        term: the term.
        head_start: share of the steps.
    """

    head_start: float

    def asks(self) -> Sequence[Ask]:
        return self.term.asks()

    def loss(self, run: Run, moment: Moment, seen: Mapping[Ask, Tensor]) -> Tensor:
        loss = self.term.loss(run, moment, seen)
        return loss if has_begun(run, self.head_start) else loss.detach()


def has_begun(run: Run, head_start: float) -> bool:
    """Whether the first part of training is over; a run that goes on for longer does not begin it anew."""
    if _BEGIN not in run.memory:
        run.memory[_BEGIN] = torch.tensor(round(head_start * run.schedule.steps))
    return run.step >= int(run.memory[_BEGIN])
