"""Constrained: exactly what each eraser does to its own names, and as little as possible to preserved prompts (Custom
Diffusion, Kumari et al., CVPR 2023, arXiv 2212.04488, section 3.2, there for concepts that are added).

With C_reg the rows of preserved prompts, C* those of the concepts' names and V* what each one's own eraser makes of
them,

    W' = argmin |W' C_reg^T - W C_reg^T|   such that   W' C*^T = V*
    d = C* (C_reg^T C_reg)^-1,    W' = W + (V* - W C*^T) (d C*^T)^-1 d

Rows that repeat others count once. `lam` makes the first matrix invertible where few prompts are preserved.
Official code read, not copied: adobe-research/custom-diffusion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..algebra import parameters as shared
from ..algebra.closed_form import cholesky
from ..algebra.held import hold
from ..algebra.tokens import ALL
from ..merging import Merged, asked, site_edits
from ..result import Eraser, WeightEdit
from ..spec import MethodSpec, Value
from ..stack import Stack
from ..task import Task

_FRAMES = ("{}", "photo of a {}")
_SAME = 1e-6
"""Share of the largest direction below which rows count as combinations of others."""


class Constrained:
    """Solves for edits that equal each eraser exactly on its names."""

    needs_model = True
    spec = MethodSpec(
        name="constrained",
        title="Constrained (Custom Diffusion)",
        paper="Kumari et al., Multi-Concept Customization of Text-to-Image Diffusion, CVPR 2023 (arXiv 2212.04488)",
        summary="Solves for the edit that does to each concept's names exactly what its own eraser does, and changes "
        "preserved prompts least.",
        families=("demo",),
        parameters=(shared.lam(0.01, "published: none, with 200 captions to preserve"),),
    )

    def merge(self, stack: Stack, task: Task | None, settings: Mapping[str, Value]) -> Merged:
        task, erasers = asked(task, self.spec.title), stack.active()
        adapters = [site_edits(eraser, task, self.spec.title) for eraser in erasers]
        rows = [_rows(eraser.recipe.names, task) for eraser in erasers]
        gram = hold(task, ALL).tokens.gram.double()
        ridge = float(settings["lam"]) * float(gram.diagonal().mean())
        found = constrain(adapters, rows, gram + ridge * torch.eye(len(gram), dtype=gram.dtype), ridge)
        return Merged(Eraser(stack.recipe(self.spec.name, settings), adapters=found))


MERGE = Constrained()


def constrain(
    adapters: Sequence[Mapping[str, WeightEdit]], rows: Sequence[Tensor], gram: Tensor, ridge: float
) -> dict[str, WeightEdit]:
    """W' - W by site, in factors that share `down`.

    Args:
        adapters: one mapping from site to edit per concept.
        rows: its names' features, `[n_i, d]`.
        gram: C_reg^T C_reg, `[d, d]` float64, positive definite.
        ridge: what of its diagonal was added to it; for the message where it is singular.
    """
    wanted = torch.cat(list(rows)).double()
    solved = torch.cholesky_solve(wanted.T, cholesky(gram, ridge)).T
    inner = torch.linalg.pinv(solved @ wanted.T, rtol=_SAME, hermitian=True)
    down = (inner @ solved).float()
    found = {}
    for site in dict.fromkeys(site for edits in adapters for site in edits):
        moved = [_moved(edits.get(site), row) for edits, row in zip(adapters, rows, strict=True)]
        out = max(part.shape[1] for part in moved)
        up = torch.cat([part if part.shape[1] else part.new_zeros(len(part), out) for part in moved]).T
        found[site] = WeightEdit(down=down, up=up.float().contiguous())
    return found


def _moved(edit: WeightEdit | None, rows: Tensor) -> Tensor:
    """What an edit adds to the layer's output for rows, `[n, o]`; `[n, 0]` for no edit."""
    if edit is None:
        return rows.new_zeros(len(rows), 0).double()
    if edit.down is not None and edit.up is not None:
        return (rows.double() @ edit.down.double().T) @ edit.up.double().T
    assert edit.dense is not None
    return rows.double() @ edit.dense.double().T


def _rows(names: Sequence[str], task: Task) -> Tensor:
    """The features of names from their first token to the end token behind them, each row once."""
    found = []
    for name in names:
        (bare,) = task.encode([name])
        length = bare.last - bare.start + 1
        for prompt in task.encode([frame.format(name) for frame in _FRAMES]):
            found.append(prompt.states[prompt.last - length + 1 : prompt.last + 2])
    return torch.unique(torch.cat(found), dim=0)
