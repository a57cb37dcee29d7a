"""Orthogonal: each eraser of a stack gives up the directions that those before it read.

With Q_i an orthonormal basis of what the edits before the i-th one read of a weight's input,

    D_i' = D_i (I - Q_i Q_i^T),    D = sum_i s_i D_i'

so that an input which an earlier edit was made for is edited by that one alone. The idea is that of Orthogonal
Adaptation (Po et al., CVPR 2024, arXiv 2312.02432), which keeps adapters apart while they are trained; here it is done
to finished ones, in the order of the stack.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..algebra.edits import edits_of, factors, read_directions, reduced, summed_parts
from ..errors import SettingError
from ..merging import Merged
from ..result import ContextOperator, Eraser, WeightEdit
from ..spec import MethodSpec, Parameter, Value
from ..stack import Stack
from ..task import Task


class Orthogonal:
    """Takes from each edit what earlier ones read."""

    needs_model = False
    spec = MethodSpec(
        name="orthogonal",
        title="Orthogonalised",
        paper="after Po et al., Orthogonal Adaptation, CVPR 2024 (arXiv 2312.02432)",
        summary="Each eraser gives up the input directions that those before it in the stack already use.",
        families=("demo",),
        parameters=(
            Parameter(
                "share",
                0.9,
                "How much of an edit's squared size the directions count that it claims for itself, 0.1 to 1. Start at "
                "0.9. Higher keeps later erasers further away from it, and may leave little of them.",
                minimum=0.1,
            ),
        ),
    )

    def merge(self, stack: Stack, task: Task | None, settings: Mapping[str, Value]) -> Merged:
        bases: dict[str, Tensor] = {}
        share, found, left = float(settings["share"]), [], []
        for eraser in stack.active():
            if eraser.modules or any(o.bias is not None for o in eraser.context.values()):
                raise SettingError(
                    f"The eraser made by {eraser.recipe.method} is no plain product with its input, so nothing can be "
                    "taken from it.",
                    "Choose mode sum or gated.",
                )
            own = edits_of(eraser)
            new = {name: _without(edit, bases.get(name)) for name, edit in own.items()}
            left.append(_size(new) / max(_size(own), 1e-30))
            for name, edit in own.items():
                bases[name] = _wider(bases.get(name), edit, share)
            found.append(_eraser(eraser, new))
        note = "Of each eraser's squared size this is left, in the order of the stack: " + ", ".join(
            f"{part:.0%}" for part in left
        )
        return Merged(Eraser(stack.recipe(self.spec.name, settings), **summed_parts(found)), f"{note}.")


MERGE = Orthogonal()


def _eraser(eraser: Eraser, edits: Mapping[str, WeightEdit]) -> Eraser:
    parts: dict[str, dict[str, WeightEdit]] = {"context": {}, "adapters": {}, "text_encoder": {}}
    for name, edit in edits.items():
        part, _, owner = name.partition(" ")
        parts[part][owner] = edit
    context = {stream: ContextOperator(**edit.tensors()) for stream, edit in parts["context"].items()}
    return Eraser(eraser.recipe, context, parts["adapters"], parts["text_encoder"])


def _without(edit: WeightEdit, basis: Tensor | None) -> WeightEdit:
    """D (I - Q Q^T), for an orthonormal `basis` Q `[d, q]`."""
    if basis is None:
        return edit
    down, up = factors(edit)
    return WeightEdit(down=down - (down @ basis) @ basis.T, up=up)


def _wider(basis: Tensor | None, edit: WeightEdit, share: float) -> Tensor:
    """A basis that also holds the input directions with a share of an edit's squared size, the largest first."""
    claimed = read_directions(*factors(edit), share)
    together = claimed if basis is None else torch.cat([basis, claimed - basis @ (basis.T @ claimed)], dim=1)
    left, size, _ = torch.linalg.svd(together, full_matrices=False)
    return left[:, size > 1e-4]


def _size(edits: Mapping[str, WeightEdit]) -> float:
    return sum(float(reduced(*factors(edit)).square().sum()) for edit in edits.values())
