"""Merging adapters in closed form, so that each acts on its own prompts and on no others (MACE, arXiv 2403.06135).

With E_i the embeddings of concept i's prompts as columns, dW_i its adapter, P what is preserved, W0 the
model's weights and W~ the refined ones the adapters were trained on, every projection becomes

    min_W' sum_i |W' E_i - (W~ + dW_i) E_i|^2 + s |W' P - W0 P|^2 + lam |W' - W~|^2
    A = lam I + sum_i E_i E_i^T + s P P^T
    W' - W0 = (W~ - W0) (I - s P P^T A^-1) + sum_i dW_i E_i E_i^T A^-1

A holds no weights: it is factored once for all layers, and with dW_i = up_i down_i only the rows of
down_i are solved, so the merger has no more rank than its parts. The published program solves for
every layer anew; the result is the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels.gram import accumulate_, gram_of
from ..errors import NumericsError
from ..result import WeightEdit
from .closed_form import Kept, cholesky, finite, solved_dtype

Edits = Mapping[str, WeightEdit]


@dataclass(frozen=True)
class _Part:
    """A left factor `[o, r]`, or None for the identity, and what stands right of it, `[r, d]` float64."""

    left: Tensor | None
    right: Tensor

    @property
    def product(self) -> Tensor:
        return self.right if self.left is None else self.left @ self.right

    @property
    def outputs(self) -> int:
        return len(self.right if self.left is None else self.left)


def fuse(
    adapters: Sequence[Edits],
    rows: Sequence[Tensor],
    preserve: Kept | Tensor | None,
    scale: float,
    lam: float,
    refined: Edits | None = None,
) -> dict[str, WeightEdit]:
    """Merge one adapter per concept into one edit per site.

    Args:
        adapters: k mappings from site to dW_i, in factors or dense; a site may be missing from some.
        rows: k tensors `[n_i, d]`, the embeddings of all positions of concept i's prompts.
        preserve: preserved embeddings `[m, d]`, or their Gram matrix as `Kept`; None for none.
        scale: s >= 0, weight of every preserved row.
        lam: the ridge, >= 0, absolute.
        refined: W~ - W0 by site, in factors or dense; None where the adapters were trained on W0.

    Returns:
        W' - W0 by site, in place of adapters and refinement both, in float64 where `rows` are, else in
        float32; in factors unless a part of the site is dense. Nothing given is changed.

    Raises:
        NumericsError: nothing to merge, shapes disagree, values are not finite, an edit is sparse, or
            the system is singular.
    """
    if len(adapters) != len(rows) or not adapters or not all(adapters):
        raise NumericsError(
            f"There are {len(adapters)} adapters, of {[len(edits) for edits in adapters]} sites, and {len(rows)} sets "
            "of embeddings to merge.",
            "Give one set of embeddings per adapter, and no empty adapter.",
        )
    width = _width(rows)
    gram = _gram(preserve, width).mul_(scale)
    own = torch.zeros_like(gram).fill_diagonal_(lam)
    for row in rows:
        accumulate_(own, row)
    factor = cholesky(own + gram, lam)
    parts: dict[str, list[_Part]] = {}
    if refined:
        rest = torch.cholesky_solve(own, factor).T  # I - s P P^T A^-1, as A = own + s P P^T
        for site, edit in refined.items():
            part = _part(site, edit, width)
            parts[site] = [_Part(part.left, part.right @ rest)]
    for edits, row in zip(adapters, rows, strict=True):
        for site, part in _confined(edits, row.double(), factor).items():
            parts.setdefault(site, []).append(part)
    return {site: _merged(site, found, solved_dtype(rows[0])) for site, found in parts.items()}


def _width(rows: Sequence[Tensor]) -> int:
    shapes = [tuple(row.shape) for row in rows]
    if any(len(shape) != 2 or shape[1] != shapes[0][1] for shape in shapes):
        raise NumericsError(f"Embeddings to merge have shapes {shapes}.", "They have to be [n, d] with one width d.")
    for row in rows:
        finite(merge=row)
    return shapes[0][1]


def _gram(preserve: Kept | Tensor | None, width: int) -> Tensor:
    """P P^T as a new `[d, d]` float64 tensor."""
    if preserve is None:
        return torch.zeros(width, width, dtype=torch.float64)
    held = preserve.gram if isinstance(preserve, Kept) else preserve
    if held.ndim != 2 or held.shape[1] != width:
        raise NumericsError(
            f"The embeddings to preserve have shape {tuple(held.shape)}.", f"They have to be [m, {width}]."
        )
    finite(preserve=held)
    return held.double().clone() if isinstance(preserve, Kept) else gram_of(held)


def _part(site: str, edit: WeightEdit, width: int) -> _Part:
    right = edit.down if edit.dense is None else edit.dense
    if right is None or right.shape[1] != width:
        shapes = {name: tuple(tensor.shape) for name, tensor in edit.tensors().items()}
        raise NumericsError(
            f"The adapter of '{site}' has {shapes}; the embeddings are {width} wide.",
            f"It has to be low-rank or dense, of width {width}.",
        )
    return _Part(None if edit.up is None else edit.up.double(), right.double())


def _confined(edits: Edits, row: Tensor, factor: Tensor) -> dict[str, _Part]:
    """dW E E^T A^-1 by site, all sites in one solve; `row` is E^T `[n, d]`, `factor` A's Cholesky factor."""
    parts = {site: _part(site, edit, row.shape[1]) for site, edit in edits.items()}
    right = torch.cat([part.right for part in parts.values()]) @ row.T @ row
    solved = torch.cholesky_solve(right.T, factor).T.split([len(part.right) for part in parts.values()])
    return {site: _Part(part.left, found) for (site, part), found in zip(parts.items(), solved, strict=True)}


def _merged(site: str, parts: list[_Part], dtype: torch.dtype) -> WeightEdit:
    """The parts' sum: in factors, unless one of them is dense."""
    outputs = sorted({part.outputs for part in parts})
    if len(outputs) > 1:
        raise NumericsError(
            f"The adapters of '{site}' have different numbers of outputs: {outputs}.", "Merge adapters of one model."
        )
    lefts = [part.left for part in parts if part.left is not None]
    if len(lefts) < len(parts):
        return WeightEdit(dense=torch.stack([part.product for part in parts]).sum(0).to(dtype))
    down = torch.cat([part.right for part in parts]).contiguous()
    return WeightEdit(down=down.to(dtype), up=torch.cat(lefts, dim=1).to(dtype))
