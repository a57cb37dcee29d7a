"""Which erasers of a stack get in each other's way, told from their edits alone.

For every weight that two erasers edit, D_1 before D_2, with Q_1 an orthonormal basis of the input directions that hold
nine tenths of D_1's squared size,

    alignment = |<D_1, D_2>| / (|D_1| |D_2|),    overlap = |D_2 Q_1|^2 / |D_2|^2

averaged over the weights that both edit. Overlap is the share of the later edit that acts on what the earlier one was
made for, and that the merge mode `orthogonal` takes from it. Adding all up keeps |sum_i D_i| / sum_i |D_i| of their
sizes, which is 1 / sqrt(k) for k edits of one size that do not touch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ..algebra.edits import edits_of, factors, read_directions, reduced
from ..result import Eraser
from ..stack import Stack

_SHOWN = 10
_SHARE = 0.9
_CROWDED = 0.5
"""Overlap from which on two erasers are named as a conflict."""


@dataclass(frozen=True, eq=False)
class Conflicts:
    """How the k erasers of a stack lie to each other.

    Attributes:
        shared: number of edited weights that two have in common, `[k, k]`.
        alignment: mean over these, `[k, k]`, 0 where there are none.
        overlap: the same, of the row's edit with what the column's reads.
        together: share of their sizes that their sum has.
    """

    shared: Tensor
    alignment: Tensor
    overlap: Tensor
    together: float


def conflicts(stack: Stack) -> Conflicts:
    """Compare the erasers of a stack at their strengths; small networks and sparse edits are left out."""
    edits = [_edits(entry.scaled()) for entry in stack.entries]
    count = len(edits)
    shared, alignment, overlap = (torch.zeros(count, count) for _ in range(3))
    whole, apart = 0.0, 0.0
    for owner in dict.fromkeys(name for own in edits for name in own):
        places = [place for place, own in enumerate(edits) if owner in own]
        inner, read = _compared([edits[place][owner] for place in places])
        sizes = inner.diagonal().clamp(min=0).sqrt()
        at = torch.tensor(places)
        grid = at[:, None], at[None, :]
        shared[grid] += 1
        alignment[grid] += (inner / (sizes[:, None] * sizes[None, :]).clamp(min=1e-30)).abs()
        overlap[grid] += read
        whole += float(inner.sum().clamp(min=0).sqrt())
        apart += float(sizes.sum())
    many = shared.clamp(min=1)
    return Conflicts(shared, alignment / many, overlap / many, whole / apart if apart else 1.0)


def conflict_table(stack: Stack) -> str:
    """The order of a stack, and the pairs that share most, for people."""
    lines = [f"{len(stack.entries)} erasers, the first applied first:"]
    lines += [f"{place}. {entry.title}, strength {entry.strength:g}" for place, entry in enumerate(stack.entries, 1)]
    found = conflicts(stack)
    pairs = [(i, j) for i in range(len(stack.entries)) for j in range(i) if found.shared[i, j]]
    if not pairs:
        return "\n".join([*lines, "No two of them edit the same weight."])
    pairs.sort(key=lambda pair: -float(found.overlap[pair]))
    lines += [f"Together they keep {found.together:.0%} of their sizes.", "Pairs that share most (overlap, alignment):"]
    for i, j in pairs[:_SHOWN]:
        mark = "  <- the later one may undo part of the earlier" if found.overlap[i, j] > _CROWDED else ""
        lines.append(f"{found.overlap[i, j]:.2f}  {found.alignment[i, j]:.2f}  {j + 1}. and {i + 1}.{mark}")
    return "\n".join(lines)


def _edits(eraser: Eraser) -> dict[str, tuple[Tensor, Tensor]]:
    """Factors of every edit of an eraser, by what is edited."""
    return {name: factors(edit) for name, edit in edits_of(eraser).items() if edit.indices is None}


def _compared(edits: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Inner products of edits, and the share of the row's edit on what the column's reads, both `[k, k]`."""
    mine = _membership([len(down) for down, _ in edits])
    down, up = torch.cat([d.float() for d, _ in edits]), torch.cat([u.float() for _, u in edits], dim=1)
    inner = mine.T @ ((up.T @ up) * (down @ down.T)) @ mine
    bases = [read_directions(*own, _SHARE) for own in edits]
    small = [reduced(*own) for own in edits]
    on = (torch.cat(small) @ torch.cat(bases, dim=1)).square()
    read = _membership([len(own) for own in small]).T @ on @ _membership([basis.shape[1] for basis in bases])
    return inner, read / inner.diagonal().clamp(min=1e-30)[:, None]


def _membership(sizes: Sequence[int]) -> Tensor:
    """Which of k groups each of the members is in, one after the other: `[sum of sizes, k]` of 0 and 1."""
    owners = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    return functional.one_hot(owners, len(sizes)).float()
