"""Saliency masks: only the entries with the largest gradients may change (SalUn, arXiv 2310.12508).

For parameterisations whose tensors are zero where nothing is changed (learn/full.py). Gradients are those at zero, so
that a run which goes on from an eraser has the same mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ..algebra.hooks import gradients
from ..errors import SettingError
from .run import Run

Losses = Callable[[Run], Iterable[Callable[[], Tensor]]]
"""Losses whose gradients are added up, each computed when it is called; random draws come from the run's generator."""


@dataclass(frozen=True)
class Saliency:
    """The entries with the largest sums of gradients; a `Plan.mask`.

    Attributes:
        losses: one mask each; what all of them have in common may change.
        share: of the entries that a mask keeps, over 0 to 1.
        together: whether entries of all tensors are ranked together, or those of each tensor alone.
    """

    losses: tuple[Losses, ...]
    share: float = 0.5
    together: bool = True

    def __call__(self, run: Run) -> Mapping[str, Tensor]:
        """The mask by the tensors' names, bool.

        Raises:
            SettingError: nothing is left that may change.
        """
        found: dict[str, Tensor] = {}
        for number, losses in enumerate(self.losses):
            with _at_zero(run, number) as leaves:
                sums = _summed(losses(run), list(leaves.values()), run.model.in_place)
            mask = largest(dict(zip(leaves, sums, strict=True)), self.share, self.together)
            found = {name: own & found[name] for name, own in mask.items()} if found else mask
        if not any(bool(mask.any()) for mask in found.values()):
            raise SettingError("The saliency masks have no entry in common.", "Raise the share, or erase fewer names.")
        return found


@contextmanager
def _at_zero(run: Run, number: int) -> Iterator[dict[str, Tensor]]:
    """The student acts with tensors of zeros and a generator of its own while the block runs."""
    own, generator = dict(run.trainables.tensors), run.generator
    zeros = {name: torch.zeros_like(tensor, requires_grad=True) for name, tensor in own.items()}
    run.trainables.tensors.update(zeros)
    run.generator = run.fork("saliency", number)
    try:
        yield zeros
    finally:
        run.trainables.tensors.update(own)
        run.generator = generator


def _summed(losses: Iterable[Callable[[], Tensor]], leaves: Sequence[Tensor], in_place: bool) -> list[Tensor]:
    """The sum of the gradients of several losses, for each leaf."""
    sums = [torch.zeros_like(leaf, requires_grad=False) for leaf in leaves]
    for loss in losses:
        with gradients(in_place):
            parts = torch.autograd.grad(loss(), leaves, allow_unused=True)
        for total, part in zip(sums, parts, strict=True):
            if part is not None:
                total += part
    return sums


def largest(sums: Mapping[str, Tensor], share: float, together: bool = True) -> dict[str, Tensor]:
    """Where the largest magnitudes are: `round(share * n)` of n entries; of equal ones the first.

    Args:
        sums: float32 tensors by name.
        share: of the entries.
        together: whether n counts the entries of all tensors, or of each.

    Returns:
        Masks by name, bool.
    """
    if not together:
        return {name: largest({name: tensor}, share)[name] for name, tensor in sums.items()}
    sizes = {name: tensor.detach().abs().contiguous().view(torch.int32) for name, tensor in sums.items()}
    count = round(share * sum(tensor.numel() for tensor in sizes.values()))
    edge = _edge(list(sizes.values()), count)
    left = count - sum(int((tensor > edge).sum()) for tensor in sizes.values())
    found = {}
    for name, tensor in sizes.items():
        ties = tensor == edge
        some = ties & (ties.flatten().cumsum(0).view_as(ties) <= left)
        left -= int(some.sum())
        found[name] = (tensor > edge) | some
    return found


def _edge(sizes: Sequence[Tensor], count: int) -> int:
    """The `count`-th largest of whole numbers from 0 on, without sorting or joining them."""
    # The bits of floats from 0 on are ordered as whole numbers, so halving the range of these finds the exact value.
    low, high = 0, 2**31 - 1
    while low < high:
        middle = (low + high + 1) // 2
        if sum(int((tensor >= middle).sum()) for tensor in sizes) >= count:
            low = middle
        else:
            high = middle - 1
    return low
