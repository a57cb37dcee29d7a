"""Losses whose gradients are taken at once, and only carried to the loop, which takes those of all terms together.

Checkpoints run a model's blocks a second time for their gradients, with the tensors that act then. A pass of the
student in another shape than its own (`Run.acting_as`) has to have its gradients before it is itself again.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def spent(loss: Tensor, leaves: Iterable[Tensor]) -> Tensor:
    """A scalar with a loss's value and its gradients towards leaves, while the loss's own graph is gone.

    Only inside `gradients()`, and where the student is what it was when the loss was made.
    """
    trained = [leaf for leaf in leaves if leaf.requires_grad]
    if not loss.requires_grad or not trained:
        return loss.detach()
    return carried(loss, trained, torch.autograd.grad(loss, trained, allow_unused=True))


def carried(value: Tensor, inputs: Iterable[Tensor], grads: Iterable[Tensor | None]) -> Tensor:
    """A scalar with the value given, whose gradients towards `inputs` are `grads`; None for no gradient."""
    found = value.detach()
    for tensor, grad in zip(inputs, grads, strict=True):
        if grad is not None:
            # Adds zero.
            found = found + ((tensor - tensor.detach()) * grad.detach()).sum().to(found)
    return found
