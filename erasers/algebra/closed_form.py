"""The ridge edit that the closed-form family shares, as one operator on text features.

With rows of C the embeddings to erase, G their replacements, P those to preserve, S and T diagonal
weights, every projection W that reads the features is edited to minimise

    sum_i s_i |W' c_i - W g_i|^2 + sum_j t_j |W' p_j - W p_j|^2 + lam |W' - W|_F^2

whose solution is W' = W (I + M) with

    M = (G - C)^T S C A^-1,    A = lam I + C^T S C + P^T T P

which holds no W: one Cholesky factorisation serves every layer (UCE, arXiv 2308.14761, eq. 7).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...kernels.gram import accumulate_, gram_of
from ..errors import NumericsError
from ..result import ContextOperator


class Kept:
    """The Gram matrix P^T T P of preserved rows, and the Cholesky factor it was last solved with.

    Args:
        gram: `[d, d]` float64; not changed. None where there are rows instead.
        rows: P, `[m, d]` float, where they are few: systems are then solved without a d x d matrix.
    """

    def __init__(self, gram: Tensor | None = None, rows: Tensor | None = None) -> None:
        self._gram, self.rows = gram, rows
        self._last: tuple[float, Tensor] | None = None

    @property
    def gram(self) -> Tensor:
        """`[d, d]` float64, made of the rows when it is first asked for."""
        if self._gram is None:
            assert self.rows is not None
            self._gram = gram_of(self.rows.double())
        return self._gram

    def factor(self, ridge: float) -> Tensor:
        """The Cholesky factor of `gram + ridge I`, `[d, d]` float64; computed again only for another ridge."""
        if self._last is None or self._last[0] != ridge:
            system = self.gram.clone()
            system.diagonal().add_(ridge)
            self._last = ridge, cholesky(system, ridge)
        return self._last[1]


class RidgeSystem:
    """Rows to erase, gathered block by block, then solved at once in float64.

    Memory stays at a few d x d matrices however many rows come: past d rows they are folded into
    their Gram matrices.

    Args:
        width: d.
        kept: preserved rows; none when None.
        scale: weight of `kept`.
    """

    def __init__(self, width: int, kept: Kept | None = None, scale: float = 1.0) -> None:
        self.width, self.kept, self.scale = width, kept, scale
        self.count, self._squares = 0, 0.0
        self._blocks: list[tuple[Tensor, Tensor]] = []
        self._pending = 0
        self._folded: tuple[Tensor, Tensor] | None = None

    def erase(self, erase: Tensor, target: Tensor, weights: Tensor | float = 1.0) -> None:
        """Add rows to erase `[n, d]`, what replaces them `[n, d]`, and their weights `[n]` or one for all.

        Raises:
            NumericsError: shapes disagree, or values are not finite.
        """
        if erase.ndim != 2 or erase.shape != target.shape or erase.shape[1] != self.width:
            raise NumericsError(
                f"Embeddings to erase and their targets have shapes {tuple(erase.shape)} and {tuple(target.shape)}.",
                f"Both have to be [n, {self.width}].",
            )
        c = erase.double()
        move = target.double() - c
        squares = float(torch.linalg.vector_norm(c) ** 2)
        if not math.isfinite(squares + float(move.sum())):
            finite(erase=erase, replace=target)
        if isinstance(weights, Tensor) or weights != 1.0:
            root = torch.as_tensor(weights, dtype=torch.float64).sqrt().reshape(-1, 1)
            c, move = c * root, move * root
        self._blocks.append((c, move))
        self.count += len(c)
        self._pending += len(c)
        self._squares += squares
        if self._pending >= self.width:
            self._fold()

    @property
    def mean_square(self) -> float:
        """Mean squared length of the rows to erase, the unit of a relative ridge."""
        return self._squares / max(self.count, 1)

    def solve(self, lam: float, dtype: torch.dtype = torch.float32) -> ContextOperator:
        """The operator in factors of rank n while n < d, else in its dense form.

        Args:
            lam: weight of staying close to the present weights, absolute.
            dtype: of the operator's tensors; the solve itself is in float64.

        Raises:
            NumericsError: there is nothing to erase, or the system is singular.
        """
        if self.count == 0:
            raise NumericsError("There are no embeddings to erase.", "Give at least one row.")
        if self._folded is None and self.count < self.width:
            c, move = (torch.cat(parts) for parts in zip(*self._blocks, strict=True))
            return ContextOperator(down=self._solve_rows(c, lam).to(dtype), up=move.T.contiguous().to(dtype))
        self._fold()
        assert self._folded is not None
        normal, cross = self._folded
        system = normal if self.kept is None else normal + self.scale * self.kept.gram
        return ContextOperator(dense=solve_ridge(system, cross.T, lam).T.contiguous().to(dtype))

    def _solve_rows(self, c: Tensor, lam: float) -> Tensor:
        """C A^-1 for few rows: by Woodbury's identity over the preserved rows' factor, or over the ridge."""
        held = None if self.kept is None else self.kept.rows
        if lam > 0 and held is not None and len(c) + len(held) <= self.width // 2:
            return _few_rows(c, held.double() * self.scale**0.5, lam)
        if lam > 0 and len(c) <= self.width // 2:
            if self.kept is None:
                base = c / lam
            else:
                factor = self.kept.factor(lam / self.scale)
                base = torch.cholesky_solve(c.T, factor).T / self.scale
            inner = base @ c.T
            inner.diagonal().add_(1.0)
            return torch.cholesky_solve(base, cholesky(inner, lam))
        system = gram_of(c)
        if self.kept is not None:
            system += self.scale * self.kept.gram
        return solve_ridge(system, c.T, lam).T

    def _fold(self) -> None:
        """Turn the pending rows into C^T S C and (G - C)^T S C."""
        if self._blocks:
            c, move = (torch.cat(parts) for parts in zip(*self._blocks, strict=True))
            if self._folded is None:
                self._folded = gram_of(c), move.T @ c
            else:
                accumulate_(self._folded[0], c)
                self._folded[1].addmm_(move.T, c)
            self._blocks, self._pending = [], 0


def _few_rows(c: Tensor, p: Tensor, lam: float) -> Tensor:
    """C (lam I + C^T C + P^T P)^-1 by X (lam I + X^T X)^-1 = (lam I + X X^T)^-1 X, with C and P as the rows of X."""
    rows = torch.cat([c, p])
    inner = rows @ rows.T
    inner.diagonal().add_(lam)
    first = torch.eye(len(rows), len(c), dtype=rows.dtype)
    return torch.cholesky_solve(first, cholesky(inner, lam)).T @ rows


def solve_edit(
    erase: Tensor,
    target: Tensor,
    preserve: Tensor,
    lam: float,
    erase_weights: Tensor | None = None,
    preserve_weights: Tensor | None = None,
) -> ContextOperator:
    """Solve the ridge edit on plain tensors.

    Args:
        erase: C, `[n, d]`, n >= 1.
        target: G, `[n, d]`, row i replaces row i of `erase`.
        preserve: P, `[m, d]`, m >= 0.
        lam: the ridge, >= 0.
        erase_weights, preserve_weights: diagonals of S `[n]` and T `[m]`; ones when None.

    Returns:
        The operator, in float64 for float64 rows, else in float32.

    Raises:
        NumericsError: shapes disagree, values are not finite, or the system is singular.
    """
    if preserve.ndim != 2 or erase.ndim != 2 or preserve.shape[1] != erase.shape[1]:
        raise NumericsError(
            f"Embeddings to erase and to preserve have shapes {tuple(erase.shape)} and {tuple(preserve.shape)}.",
            "They have to be [n, d] and [m, d].",
        )
    finite(preserve=preserve)
    n, width = erase.shape
    c, g, p = erase.double(), target.double(), preserve.double()
    weights = torch.ones(n) if erase_weights is None else erase_weights
    if preserve_weights is not None:
        p = p * preserve_weights.double().sqrt()[:, None]
    few = lam > 0 and len(p) > 0 and n + len(p) <= width // 2
    if few:
        # Preserved rows as rows "erased" towards themselves: one small system instead of a d x d one.
        c, g = torch.cat([c, p]), torch.cat([g, p])
        weights = torch.cat([weights, torch.ones(len(p))])
    system = RidgeSystem(width, None if few or not len(p) else Kept(gram_of(p)))
    system.erase(c, g, weights)
    operator = system.solve(lam, solved_dtype(erase))
    if few and operator.down is not None and operator.up is not None:
        return ContextOperator(down=operator.down[:n].contiguous(), up=operator.up[:, :n].contiguous())
    return operator


def solve_ridge(system: Tensor, right: Tensor, lam: float) -> Tensor:
    """`(system + lam I)^-1 right` by Cholesky; `system` `[d, d]` symmetric, `right` `[d, k]`, both float64.

    Raises:
        NumericsError: the matrix is not positive definite.
    """
    ridged = system.clone()
    ridged.diagonal().add_(lam)
    return torch.cholesky_solve(right, cholesky(ridged, lam))


def cholesky(matrix: Tensor, lam: float) -> Tensor:
    """Lower Cholesky factor; NumericsError names the ridge `lam` when the matrix is not positive definite."""
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if int(failed):
        raise NumericsError(
            f"The edit's {matrix.shape[0]}x{matrix.shape[0]} system is singular at ridge {lam:g}.",
            "Raise the ridge (lam), or preserve more prompts.",
        )
    return factor


def solved_dtype(rows: Tensor) -> torch.dtype:
    """What a solution for `rows` is returned in: float64 for float64, else float32."""
    return torch.float64 if rows.dtype == torch.float64 else torch.float32


def finite(**rows: Tensor) -> None:
    """NumericsError unless every tensor is finite; the keyword names it in the message."""
    for name, tensor in rows.items():
        if not bool(torch.isfinite(tensor).all()):
            raise NumericsError(
                f"The embeddings to {name} hold values that are not finite.",
                "Check the text encoder: half precision can overflow.",
            )
