"""AdamW on tensors that a block of the plan trains beside the student.

Tensors and state lie in the run's memory, where they are replaced and never changed, so that a run that goes on from a
state goes on with them, and a step that never happened leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .run import Run

_EPS = 1e-8
_VALUE, _MEAN, _SQUARE, _COUNT = "value", "mean", "square", "count"


@dataclass(frozen=True)
class OwnAdam:
    """The optimiser, and what it trains.

    Attributes:
        name: under which all of it lies in memory.
        rate: learning rate.
        betas: decay of the running means.
        decay: weight decay, as AdamW has it.
    """

    name: str
    rate: float
    betas: tuple[float, float] = (0.9, 0.999)
    decay: float = 0.0

    def leaves(self, run: Run, make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors by name as they are now, ready for gradients; those that `make` gives before the first step."""
        prefix = self._key(_VALUE, "")
        known = {name.removeprefix(prefix): own for name, own in run.memory.items() if name.startswith(prefix)}
        return {name: own.detach().requires_grad_() for name, own in (known or make()).items()}

    @torch.no_grad()
    def step(self, run: Run, leaves: Mapping[str, Tensor], grads: Mapping[str, Tensor]) -> None:
        """Replace the tensors in memory by those one step further on.

        Args:
            grads: by the tensors' names; those without one are as before.
        """
        slow, slower = self.betas
        for name, leaf in leaves.items():
            run.memory.setdefault(self._key(_VALUE, name), leaf.detach().clone())
            if name not in grads:
                continue
            grad = grads[name].to(leaf)
            keys = [self._key(kind, name) for kind in (_MEAN, _SQUARE, _COUNT)]
            mean, square, count = (run.memory.get(key, torch.zeros(())).to(leaf) for key in keys)
            mean, square, count = slow * mean + (1 - slow) * grad, slower * square + (1 - slower) * grad**2, count + 1
            run.memory |= dict(zip(keys, (mean, square, count), strict=True))
            length = (square / (1 - slower**count)).sqrt() + _EPS
            kept = leaf.detach() * (1 - self.rate * self.decay)
            run.memory[self._key(_VALUE, name)] = kept - self.rate * mean / (1 - slow**count) / length

    def _key(self, kind: str, name: str) -> str:
        return f"{self.name}/{kind}/{name}"
