"""Adding edits up, and making them smaller: sums are of the products, never of the factors."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import NumericsError
from ..result import Bottleneck, ContextOperator, Eraser, WeightEdit

_BLOCK = re.compile(r"^(.*blocks?\.\d+|.*layers\.\d+|mid_block)\.")
_NEGLIGIBLE = 1e-6
"""Of the largest singular value; what lies below is rounding of float32."""


def block_of(name: str) -> str:
    """The innermost block of the model that a weight is in, by its name."""
    found = _BLOCK.match(name)
    return found[1] if found else name


def scaled(edit: WeightEdit, strength: float) -> WeightEdit:
    """An edit at another strength, which goes to one factor only."""
    moved = {"up", "dense", "values"}
    return WeightEdit(**{n: tensor * strength if n in moved else tensor for n, tensor in edit.tensors().items()})


def scaled_bottleneck(own: Bottleneck, strength: float) -> Bottleneck:
    """A small network whose output is multiplied."""
    return Bottleneck(own.down, own.down_bias, own.up * strength, own.up_bias * strength)


def scaled_parts(eraser: Eraser, strength: float) -> dict[str, Any]:
    """The parts of an eraser at another strength, by name."""
    return {
        "context": {stream: operator.scaled(strength) for stream, operator in eraser.context.items()},
        "adapters": {name: scaled(edit, strength) for name, edit in eraser.adapters.items()},
        "text_encoder": {name: scaled(edit, strength) for name, edit in eraser.text_encoder.items()},
        "modules": {name: scaled_bottleneck(own, strength) for name, own in eraser.modules.items()},
    }


def summed(edits: Sequence[WeightEdit]) -> WeightEdit:
    """The sum of edits of one weight: factors side by side where all are low-rank, sparse where all are, else dense.

    Raises:
        NumericsError: they are of different sizes.
    """
    if all(edit.indices is not None for edit in edits):
        pairs = [edit.tensors() for edit in edits]
        return WeightEdit(**{name: torch.cat([pair[name] for pair in pairs]) for name in ("indices", "values")})
    sizes = {size for edit in edits if (size := matrix_size(edit)) is not None}
    if len(sizes) != 1:
        raise NumericsError(f"Edits of one weight have different sizes: {sorted(sizes)}.", "Merge edits of one model.")
    (size,) = sizes
    ranks = [edit.down.shape[0] for edit in edits if edit.down is not None]
    if len(ranks) == len(edits) and sum(ranks) < min(size):
        downs, ups = zip(*(factors(edit) for edit in edits), strict=True)
        return WeightEdit(down=torch.cat(downs), up=torch.cat(ups, dim=1))
    return WeightEdit(dense=torch.stack([edit.delta(size).float() for edit in edits]).sum(0))


def summed_by_name(parts: Sequence[Mapping[str, WeightEdit]]) -> dict[str, WeightEdit]:
    """The sums of several erasers' edits, weight by weight; a weight need not be in all."""
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: summed([part[name] for part in parts if name in part]) for name in names}


def summed_parts(erasers: Sequence[Eraser]) -> dict[str, Any]:
    """The parts of one eraser that does what several do together, by name; in any order the same."""
    streams = dict.fromkeys(stream for eraser in erasers for stream in eraser.context)
    places = dict.fromkeys(name for eraser in erasers for name in eraser.modules)
    return {
        "context": {s: summed_operators([e.context[s] for e in erasers if s in e.context]) for s in streams},
        "adapters": summed_by_name([eraser.adapters for eraser in erasers]),
        "text_encoder": summed_by_name([eraser.text_encoder for eraser in erasers]),
        "modules": {p: summed_bottlenecks([e.modules[p] for e in erasers if p in e.modules]) for p in places},
    }


def summed_operators(operators: Sequence[ContextOperator]) -> ContextOperator:
    """The operator that moves features by the sum of what each moves them by."""
    moves = summed([as_edit(operator) for operator in operators])
    biases = [operator.bias for operator in operators if operator.bias is not None]
    return ContextOperator(**moves.tensors(), bias=torch.stack(biases).sum(0) if biases else None)


def summed_bottlenecks(own: Sequence[Bottleneck]) -> Bottleneck:
    """One network that adds what several add: their units side by side."""
    return Bottleneck(
        torch.cat([one.down for one in own]),
        torch.cat([one.down_bias for one in own]),
        torch.cat([one.up for one in own], dim=1),
        torch.stack([one.up_bias for one in own]).sum(0),
    )


def as_edit(operator: ContextOperator) -> WeightEdit:
    """M of an operator `x + M x + b` as an edit of the identity."""
    return WeightEdit(**{name: tensor for name, tensor in operator.tensors().items() if name != "bias"})


def edits_of(eraser: Eraser) -> dict[str, WeightEdit]:
    """Every edit of an eraser, by "part owner"; operators on the text features as edits of the identity."""
    found = {f"context {stream}": as_edit(operator) for stream, operator in eraser.context.items()}
    found |= {f"adapters {name}": edit for name, edit in eraser.adapters.items()}
    return found | {f"text_encoder {name}": edit for name, edit in eraser.text_encoder.items()}


def factors(edit: WeightEdit) -> tuple[Tensor, Tensor]:
    """`down` `[r, d]` and `up` `[o, r]` of an edit: its own, or those of its singular value decomposition."""
    if edit.down is not None and edit.up is not None:
        return edit.down, edit.up
    if edit.dense is None:
        raise NumericsError("A sparse edit has no low-rank factors.", "Merge it in mode sum, or apply it by itself.")
    left, values, right = torch.linalg.svd(edit.dense.float(), full_matrices=False)
    return _decomposed(left, values, right, len(values))


def shrunk(edit: WeightEdit, rank: int) -> tuple[WeightEdit, float]:
    """The nearest edit of at most a rank, and the share of the squared size that it keeps (Eckart and Young, 1936)."""
    if edit.indices is not None:
        return edit, 1.0
    if edit.down is not None and edit.up is not None:
        if edit.down.shape[0] <= rank:
            return edit, 1.0
        # The SVD of up @ down is that of a matrix of their rank.
        outer, upper = torch.linalg.qr(edit.up.float())
        inner, lower = torch.linalg.qr(edit.down.float().T)
        left, values, right = torch.linalg.svd(upper @ lower.T)
        left, right = outer @ left, right @ inner.T
    else:
        assert edit.dense is not None
        left, values, right = torch.linalg.svd(edit.dense.float(), full_matrices=False)
    down, up = _decomposed(left, values, right, rank)
    share = float(values[:rank].square().sum() / values.square().sum().clamp(min=1e-30))
    return WeightEdit(down=down, up=up), share


def matrix_size(edit: WeightEdit) -> tuple[int, int] | None:
    """Rows and columns of an edit; None for a sparse one, which does not tell."""
    if edit.down is not None and edit.up is not None:
        return edit.up.shape[0], edit.down.shape[1]
    return None if edit.dense is None else (edit.dense.shape[0], edit.dense.shape[1])


def inner_product(first: WeightEdit, second: WeightEdit) -> float:
    """<D1, D2>, without making the products where both are in factors."""
    if first.down is not None and second.down is not None and first.up is not None and second.up is not None:
        return float(((first.up.T @ second.up) * (first.down @ second.down.T)).sum())
    size = matrix_size(first) or matrix_size(second)
    if size is None:
        raise NumericsError("Two sparse edits have no size to compare them in.", "Compare them as dense ones.")
    return float((first.delta(size) * second.delta(size)).sum())


def reduced(down: Tensor, up: Tensor) -> Tensor:
    """T `[r, d]` with T^T T = D^T D for D = up @ down: D without the rotation of its outputs."""
    return torch.linalg.qr(up.float())[1] @ down.float()


def read_directions(down: Tensor, up: Tensor, share: float) -> Tensor:
    """An orthonormal basis `[d, q]` of the fewest input directions that hold a share of an edit's squared size."""
    _, values, right = torch.linalg.svd(reduced(down, up), full_matrices=False)
    kept = int((values.square().cumsum(0) < share * values.square().sum()).sum()) + 1
    return right[:kept].T


def _decomposed(left: Tensor, values: Tensor, right: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    kept = max(1, min(rank, int((values > values.max() * _NEGLIGIBLE).sum())))
    return right[:kept].contiguous(), (left[:, :kept] * values[:kept]).contiguous()
