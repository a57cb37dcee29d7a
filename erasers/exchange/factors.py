"""What an eraser changes, weight by weight, as other programs can hold it: in factors or whole."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels.gram import gram_of
from ..errors import SettingError
from ..result import ContextOperator, Eraser, WeightEdit
from ..sites import reading_weights
from .base import ADAPTERS, TEXT, Base, Owner

_EXACT = 1e-13
"""Share of a change's squared norm that may be left out of factors that count as exact: float32's own rounding."""


@dataclass(frozen=True)
class Change:
    """What is added to one weight.

    Attributes:
        shape: of the weight.
        up, down: `[o, r]` and `[r, d]` float32, whose product it is; d counts a kernel's places too.
        full: `[o, d]` float32 instead of the factors.
    """

    shape: tuple[int, ...]
    up: Tensor | None = None
    down: Tensor | None = None
    full: Tensor | None = None

    def matrix(self) -> Tensor:
        """The change as one matrix `[o, d]`."""
        if self.full is not None:
            return self.full
        assert self.up is not None
        assert self.down is not None
        return self.up @ self.down

    @property
    def rank(self) -> int | None:
        """Rank of the factors; None for the full form."""
        return None if self.down is None else len(self.down)


@dataclass(frozen=True)
class Factors:
    """Low-rank factors of a change, and the share of its squared norm that they keep."""

    up: Tensor
    down: Tensor
    kept: float


def factorise(matrix: Tensor, rank: int = 0) -> Factors:
    """The best factors of a matrix at a rank, through the eigenvectors of its smaller Gram matrix in float64.

    Args:
        matrix: `[o, d]`.
        rank: the most there may be; 0 for as many as it takes to be exact in float32.
    """
    wide = matrix.shape[0] <= matrix.shape[1]
    own = matrix.double() if wide else matrix.double().T
    values, vectors = torch.linalg.eigh(gram_of(own.T))
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    total = float(values.sum())
    left = total - values.cumsum(0)
    needed = 1 + int((left > _EXACT * total).sum())
    chosen = min(needed, rank or needed, len(values))
    basis = vectors[:, :chosen]
    rest = basis.T @ own
    up, down = (basis, rest) if wide else (rest.T, basis.T)
    kept = 1.0 if total == 0 or chosen >= needed else float(values[:chosen].sum()) / total
    return Factors(up.float().contiguous(), down.float().contiguous(), kept)


def changes(eraser: Eraser, base: Base) -> dict[Owner, Change]:
    """What an eraser adds to each weight of `base` at strength 1: `(W + D)(I + M) - W` at its sites.

    Raises:
        SettingError: a part of it is no change of weights.
        FamilyError: it is for another family, or an edit does not fit its weight.
    """
    check_weights_suffice(eraser)
    eraser.check_family(base.family)
    operators = _operators(eraser, base)
    found: dict[Owner, Change] = {}
    for name in dict.fromkeys((*operators, *eraser.adapters)):
        found[ADAPTERS, name] = _change((ADAPTERS, name), eraser, base, operators.get(name))
    for name in eraser.text_encoder:
        found[TEXT, name] = _change((TEXT, name), eraser, base, None)
    return found


def check_weights_suffice(eraser: Eraser) -> None:
    """SettingError for an eraser with parts that act beside the weights."""
    beside = {
        "holds small networks beside layers": bool(eraser.modules),
        "shifts the text features by a bias": any(entry.bias is not None for entry in eraser.context.values()),
        "holds parts that open by the prompt": bool(eraser.members),
    }
    for problem, there in beside.items():
        if there:
            raise SettingError(
                f"This eraser {problem}, which changed weights cannot do.", "Save it in the layout 'eraser'."
            )


def _operators(eraser: Eraser, base: Base) -> dict[str, ContextOperator]:
    """The operator in front of each weight that reads its features."""
    found: dict[str, ContextOperator] = {}
    shapes = {name: shape for (part, name), shape in base.shapes.items() if part == ADAPTERS}
    for stream, operator in eraser.context.items():
        found |= dict.fromkeys(reading_weights(shapes, base.family, stream), operator)
    return found


def _change(owner: Owner, eraser: Eraser, base: Base, operator: ContextOperator | None) -> Change:
    shape = base.shape(owner)
    rows, columns = shape[0], math.prod(shape[1:])
    edits: Mapping[str, WeightEdit] = getattr(eraser, owner[0])
    pairs: list[tuple[Tensor, Tensor]] = []
    full: Tensor | None = None
    if owner[1] in edits:
        edit = edits[owner[1]]
        edit.check_shape(shape)
        if edit.up is not None and edit.down is not None:
            pairs.append((edit.up, edit.down))
        else:
            full = edit.delta(shape).reshape(rows, columns)
    if operator is not None:
        before = base.read(owner)
        if owner[1] in edits:
            before = before + edits[owner[1]].delta(shape)
        pairs.append(operator.factors(before))
    ranks = sum(len(down) for _, down in pairs)
    if full is None and ranks * (rows + columns) < rows * columns:
        up, down = torch.cat([up for up, _ in pairs], 1), torch.cat([down for _, down in pairs])
        return Change(shape, up.float(), down.float())
    product = sum((up @ down for up, down in pairs), torch.zeros(rows, columns) if full is None else full)
    return Change(shape, full=product.float())
