"""Group-sparse: of each eraser only the blocks of the model that carry most of it, after GS-LoRA (Zhao et al., CVPR
2024, arXiv 2403.11530), which drives whole groups of adapters to zero while it trains.

A group g is a block of the model; its size is |D_g| = sqrt(sum of the squared entries of its edits). The largest groups
that together hold a share of the whole squared size stay; the sum of what stays is the result.
Official code read, not copied: bjzhb666/GS-LoRA.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ..algebra.edits import block_of, inner_product, summed_parts
from ..merging import Merged
from ..result import Eraser, WeightEdit
from ..spec import MethodSpec, Parameter, Value
from ..stack import Stack
from ..task import Task


class Sparse:
    """Drops the blocks that matter least, then adds up."""

    needs_model = False
    spec = MethodSpec(
        name="sparse",
        title="Group-sparse",
        paper="after Zhao et al., Continual Forgetting for Pre-trained Vision Models, CVPR 2024 (arXiv 2403.11530)",
        summary="Keeps of each eraser the blocks that carry most of it, then adds them up: smaller, less interference.",
        families=("demo",),
        parameters=(
            Parameter(
                "share",
                0.9,
                "Share of each eraser's squared size that its kept blocks hold, 0.1 to 1. Start at 0.9; 1 keeps every "
                "block. Lower makes the file smaller and may bring concepts back.",
                minimum=0.1,
            ),
        ),
    )

    def merge(self, stack: Stack, task: Task | None, settings: Mapping[str, Value]) -> Merged:
        found, counts = [], []
        for eraser in stack.active():
            groups = _groups(eraser.adapters)
            kept = _largest(groups, float(settings["share"]))
            counts.append(f"{len(kept)} of {len(groups)}" if groups else "no block to drop")
            adapters = {name: edit for group in kept for name, edit in groups[group].items()}
            found.append(replace(eraser, adapters=adapters))
        note = f"Blocks kept, in the order of the stack: {', '.join(counts)}."
        return Merged(Eraser(stack.recipe(self.spec.name, settings), **summed_parts(found)), note)


MERGE = Sparse()


def _groups(adapters: Mapping[str, WeightEdit]) -> dict[str, dict[str, WeightEdit]]:
    """Edits by the block that their weight is in."""
    found: dict[str, dict[str, WeightEdit]] = {}
    for name, edit in adapters.items():
        found.setdefault(block_of(name), {})[name] = edit
    return found


def _largest(groups: Mapping[str, Mapping[str, WeightEdit]], share: float) -> list[str]:
    """The fewest groups that hold a share of the squared size."""
    sizes = {group: sum(_squared(edit) for edit in edits.values()) for group, edits in groups.items()}
    whole, held, kept = sum(sizes.values()), 0.0, []
    for group in sorted(sizes, key=lambda name: -sizes[name]):
        if kept and held >= share * whole:
            break
        kept.append(group)
        held += sizes[group]
    return kept


def _squared(edit: WeightEdit) -> float:
    return float(edit.values.square().sum()) if edit.values is not None else inner_product(edit, edit)
