"""Erasers' edits as task vectors: whole differences of weights, weight by weight, merged by a function of several."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import SettingError
from ..result import ContextOperator, Eraser, WeightEdit
from .edits import as_edit, matrix_size, shrunk

Combine = Callable[[list[Tensor]], Tensor]
"""Several differences of one weight `[o, d]` to one."""


def merge_utils() -> Any:
    """peft's functions for merging; SettingError where peft is not installed."""
    try:
        from peft.utils import merge_utils as found
    except ImportError as error:
        raise SettingError("This mode needs the package peft.", "Install it with 'pip install peft'.") from error
    return found


def combined_parts(erasers: Sequence[Eraser], combine: Combine, rank: int) -> tuple[dict[str, Any], float]:
    """The parts of an eraser whose edits are made of several, and the least share of a squared size that `rank` kept.

    Raises:
        SettingError: an eraser has parts that are no difference of a weight.
    """
    if any(eraser.modules or any(o.bias is not None for o in eraser.context.values()) for eraser in erasers):
        raise SettingError("Small networks and shifted features are no differences of weights.", "Choose mode sum.")
    shares = [1.0]

    def merged(parts: Sequence[Mapping[str, WeightEdit]]) -> dict[str, WeightEdit]:
        found = {}
        for name in dict.fromkeys(name for part in parts for name in part):
            own = [part[name] for part in parts if name in part]
            whole = WeightEdit(dense=combine([edit.delta(_size(name, own)).float() for edit in own]))
            found[name], share = shrunk(whole, rank) if rank else (whole, 1.0)
            shares.append(share)
        return found

    operators = merged([{stream: as_edit(o) for stream, o in eraser.context.items()} for eraser in erasers])
    return {
        "context": {stream: ContextOperator(**edit.tensors()) for stream, edit in operators.items()},
        "adapters": merged([eraser.adapters for eraser in erasers]),
        "text_encoder": merged([eraser.text_encoder for eraser in erasers]),
    }, min(shares)


def weights_of(deltas: Sequence[Tensor]) -> Tensor:
    """Equal weights of 1: a stack's strengths are in the differences already."""
    return torch.ones(len(deltas))


def _size(name: str, edits: Sequence[WeightEdit]) -> tuple[int, int]:
    sizes = {size for edit in edits if (size := matrix_size(edit)) is not None}
    if len(sizes) != 1:
        raise SettingError(f"The size of '{name}' cannot be told from sparse edits alone.", "Choose mode sum.")
    return sizes.pop()
