"""Edits confined to the null space of what is retained, in low rank.

With R the mean outer product of the retained rows, P the projector on its eigenvectors below tau, c rows to
erase (`C1 = c^T c`), `move` the way each is to go (`A1 - C1 = move^T c`) and K2 columns that must not move,

    dW = W (A1 - C1) P [I - N K2 (K2^T P N K2 + lamb I)^-1 K2^T P] N,    N = (C1 P + rho I)^-1

(SPEED, arXiv 2503.07392) is `W move^T` times rows that hold no W. With z = c P Woodbury's identity gives
`P N = (P - z^T (rho I + z z^T)^-1 z) / rho`: the systems to solve have as many rows as there are to erase.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ...kernels.gram import accumulate_, gram_of
from ..errors import NumericsError
from .closed_form import cholesky, solve_ridge

BATCH = 128
"""Retained rows whose samples share one mean when they are filtered."""
_NEGLIGIBLE = 1e-9


@dataclass(frozen=True)
class NullSpace:
    """The space that retained rows leave free, kept as an orthonormal basis of what they take.

    Attributes:
        taken: `[p, d]` float64, orthonormal rows.
    """

    taken: Tensor

    @property
    def dimensions(self) -> int:
        """How many dimensions are free."""
        return self.taken.shape[1] - len(self.taken)

    def project(self, rows: Tensor) -> Tensor:
        """The part of rows `[k, d]` in the null space."""
        return rows - (rows @ self.taken.T) @ self.taken


@dataclass(frozen=True)
class Prior:
    """Retained rows, and what the unconstrained edit would do to them.

    Attributes:
        c: `[k, d]` float64, `C1 = c^T c`.
        retain: `[m, d]` float64.
        noise: `[m, aug_num]` float64, how far each sample lies from its row along a layer's direction.
        filtered: whether rows and samples of little influence are left out.
    """

    c: Tensor
    retain: Tensor
    noise: Tensor
    filtered: bool

    @cached_property
    def influence(self) -> Tensor:
        """`c (I + C1)^-1`, `[k, d]`: with W move^T before it, the unconstrained edit of a layer."""
        inner = self.c @ self.c.T
        inner.diagonal().add_(1.0)
        return torch.cholesky_solve(self.c, cholesky(inner, 1.0))

    @cached_property
    def reply(self) -> Tensor:
        """`[m, k]`, the retained rows through `influence`; the same for every layer."""
        return self.retain @ self.influence.T

    def root(self, squares: Tensor, direction: Tensor) -> Tensor:
        """Rows whose Gram matrix is the mean outer product of what a layer retains, samples included.

        Args:
            squares: `[k, k]`, `up^T up` with `up = W move^T`.
            direction: `[d]`, where samples lie.

        Returns:
            `[kept + 1, d]` float64.
        """
        aside = self.influence @ direction
        energy = ((self.reply @ squares) * self.reply).sum(1)
        kept = self._keep(energy.clamp(min=0).sqrt())
        rows, noise = self.retain[kept], self.noise[kept]
        slope = self.reply[kept] @ (squares @ aside)
        sampled = energy[kept, None] + 2 * noise * slope[:, None] + noise.square() * (aside @ squares @ aside)
        stays = torch.ones_like(noise)
        if self.filtered and noise.numel():
            batches = sampled.clamp(min=0).sqrt().split(BATCH)
            stays = torch.cat([(batch > batch.mean()).to(noise.dtype) for batch in batches])
        # A row and its samples r + a v sum to w (r + s v)(r + s v)^T and a rest along v.
        weight = 1 + stays.sum(1)
        shift = (noise * stays).sum(1) / weight
        rest = (noise.square() * stays).sum() - (weight * shift.square()).sum()
        means = weight.sqrt()[:, None] * (rows + shift[:, None] * direction)
        found = torch.cat([means, rest.clamp(min=0).sqrt() * direction[None]])
        return found / weight.sum().clamp(min=1).sqrt()

    def _keep(self, moved: Tensor) -> Tensor:
        """`[m]` bool: which rows are moved more than the mean; all of them where none is."""
        above = moved > moved.mean()
        return above if self.filtered and bool(above.any()) else torch.ones_like(above)


def null_space(root: Tensor, tau: float) -> NullSpace:
    """The eigenvectors of `root^T root` with eigenvalues below `tau`.

    Args:
        root: `[m, d]` float64; with fewer rows than columns only an m x m matrix is decomposed.
        tau: absolute; eigenvalues within rounding of zero count as below.
    """
    rows, width = root.shape
    few = rows < width
    values, vectors = torch.linalg.eigh(gram_of(root.T if few else root))
    rounding = width * torch.finfo(root.dtype).eps * values[-1:].clamp(min=0)
    above = (values >= tau) & (values > rounding)
    basis = vectors[:, above]
    if few:
        # Small eigenvalues leave the basis slightly askew, which a QR sets right.
        basis = torch.linalg.qr(root.T @ basis / values[above].sqrt()).Q
    return NullSpace(basis.T.contiguous())


def solve_in_null_space(c: Tensor, space: NullSpace, rho: float, fixed: Tensor, lamb: float) -> Tensor:
    """Rows `down` with `dW = W move^T down`.

    Args:
        c: rows to erase, `[k, d]` float64, each times the root of its weight.
        rho: weight of `|dW|^2`, > 0.
        fixed: K2 as rows `[t, d]`, t >= 0.
        lamb: softness of holding them; 0 holds them exactly.

    Returns:
        `[k, d]` float64.

    Raises:
        NumericsError: a system is singular to working precision.
    """
    z = space.project(c)
    inner = z @ z.T
    inner.diagonal().add_(rho)
    down = torch.cholesky_solve(z, _factor(inner, "rho", rho))
    held = space.project(fixed)
    if lamb == 0:
        held = _span(held, float(fixed.norm()))
    if not len(held):
        return down
    reply = (held - (held @ z.T) @ down) / rho
    inner = reply @ held.T
    inner.diagonal().add_(lamb)
    return down - (down @ held.T) @ torch.cholesky_solve(reply, _factor(inner, "lamb", lamb))


def quiet_direction(weights: Sequence[Tensor], draw: Tensor | None) -> Tensor:
    """A unit vector `[d]` float64 that weights `[o, d]`, one or several together, answer least.

    That is their smallest right singular vector; with fewer outputs than inputs, the smallest a reduced
    decomposition returns.

    Args:
        draw: `[d]`; with fewer outputs than inputs, where whole dimensions are not answered at all, the
            direction is this vector's part in them. None for the reduced decomposition's.
    """
    if sum(len(weight) for weight in weights) >= weights[0].shape[1]:
        gram = torch.zeros(weights[0].shape[1], weights[0].shape[1], dtype=torch.float64)
        for weight in weights:
            accumulate_(gram, weight)
        return torch.linalg.eigh(gram).eigenvectors[:, 0]
    w = torch.cat([weight.double() for weight in weights])
    outer = gram_of(w.T)
    if draw is None:
        found = w.T @ torch.linalg.eigh(outer).eigenvectors[:, 0]
    else:
        found, ridge = draw.double(), 1e-12 * float(outer.trace())
        for _ in range(2):  # the second pass removes what rounding and the ridge left
            found = found - w.T @ solve_ridge(outer, (w @ found)[:, None], ridge)[:, 0]
    return found / found.norm()


def _span(rows: Tensor, size: float) -> Tensor:
    """An orthonormal basis of the rows' span, without directions that are nothing beside `size`.

    Held exactly, only the span counts, and the basis stays well conditioned where rows are alike or lie in what
    is retained anyway.
    """
    _, sizes, basis = torch.linalg.svd(rows, full_matrices=False)
    return basis[sizes > _NEGLIGIBLE * size]


def _factor(system: Tensor, name: str, value: float) -> Tensor:
    try:
        return cholesky(system, value)
    except NumericsError as error:
        raise NumericsError(
            f"The edit's system is singular at {name} {value:g}.", f"Raise {name}, or preserve fewer prompts."
        ) from error
