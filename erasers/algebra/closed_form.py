"""The ridge edit that the closed-form family shares, as one operator on text features.

With rows of C the embeddings to erase, G their replacements, P those to preserve, S and T diagonal
weights, every projection W that reads the features is edited to minimise

    sum_i s_i |W' c_i - W g_i|^2 + sum_j t_j |W' p_j - W p_j|^2 + lam |W' - W|_F^2

whose solution is W' = W (I + M) with

    M = (G - C)^T S C A^-1,    A = lam I + C^T S C + P^T T P

which holds no W: one Cholesky factorisation of A serves every layer (UCE, arXiv 2308.14761, eq. 7).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import NumericsError
from ..result import ContextOperator


def solve_edit(
    erase: Tensor,
    target: Tensor,
    preserve: Tensor,
    ridge: float,
    erase_weights: Tensor | None = None,
    preserve_weights: Tensor | None = None,
) -> ContextOperator:
    """Solve for the context operator in float64.

    Args:
        erase: C, `[n, d]`, n >= 1.
        target: G, `[n, d]`, row i replaces row i of `erase`.
        preserve: P, `[m, d]`, m >= 0.
        ridge: lam >= 0, the weight of staying close to the present weights.
        erase_weights, preserve_weights: diagonals of S `[n]` and T `[m]`; ones when None.

    Returns:
        float32 factors of rank n while n < d, else the dense form.

    Raises:
        NumericsError: shapes disagree, values are not finite, or A is not positive definite.
    """
    _check(erase, target, preserve)
    c, g, p = erase.double(), target.double(), preserve.double()
    weighted = c if erase_weights is None else c * erase_weights.double()[:, None]
    gram = c.T @ weighted
    gram += p.T @ (p if preserve_weights is None else p * preserve_weights.double()[:, None])
    gram.diagonal().add_(ridge)
    factor, failed = torch.linalg.cholesky_ex(gram)
    if int(failed):
        raise NumericsError(
            f"The edit's {gram.shape[0]}x{gram.shape[0]} system is singular at ridge {ridge:g}.",
            "Raise the ridge, or preserve more prompts.",
        )
    down = torch.cholesky_solve(weighted.T, factor).T
    up = (g - c).T
    if down.shape[0] < down.shape[1]:
        return ContextOperator(down=down.float(), up=up.float())
    return ContextOperator(dense=(up @ down).float())


def _check(erase: Tensor, target: Tensor, preserve: Tensor) -> None:
    shapes = f"{tuple(erase.shape)}, {tuple(target.shape)} and {tuple(preserve.shape)}"
    fits = erase.ndim == preserve.ndim == 2 and erase.shape == target.shape and erase.shape[1] == preserve.shape[1]
    if not fits or len(erase) == 0:
        raise NumericsError(
            f"Embeddings to erase, their targets and those to preserve have shapes {shapes}.",
            "They have to be [n, d], [n, d] and [m, d] with n at least 1.",
        )
    for name, rows in (("erase", erase), ("replace", target), ("preserve", preserve)):
        if not bool(torch.isfinite(rows).all()):
            raise NumericsError(
                f"The embeddings to {name} hold values that are not finite.",
                "Check the text encoder: half precision can overflow.",
            )
