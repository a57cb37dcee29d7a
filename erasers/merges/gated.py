"""Gated: every eraser of a stack keeps to itself and acts on a prompt as far as its own gate opens.

    y = W x + sum_i gamma_i(prompt) s_i B_i A_i x

After SPM's facilitated transport (Lyu et al., CVPR 2024, arXiv 2312.16145), where gamma stands once beside each
product; the official program multiplies both factors by it and adds factors of different concepts up. Gates are told
once per prompt (gates/), and an eraser whose gate is shut costs nothing and changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ..merging import Merged, asked
from ..registry import gates
from ..result import Eraser, Member, WeightEdit
from ..spec import MethodSpec, Parameter, Value
from ..stack import Stack
from ..task import Task


class Gated:
    """Puts a gate before each eraser."""

    needs_model = True
    spec = MethodSpec(
        name="gated",
        title="Gated",
        paper="Lyu et al., One-dimensional Adapter to Rule Them All, CVPR 2024 (arXiv 2312.16145)",
        summary="Each eraser acts only on prompts that ask for its concept; others stay bit for bit as they are.",
        families=("demo",),
        parameters=(
            Parameter(
                "gate",
                "transport",
                "What opens a gate. transport: the share of the concept's tokens in the prompt, or the likeness of all "
                "its features, as published. discriminant: a word that a linear reader of text features takes for the "
                "concept, which finds other names for it, too (name many prompts to preserve). contribution: for each "
                "of the concept's tokens one like it in the prompt.",
                choices=("transport", "discriminant", "contribution"),
            ),
            Parameter(
                "threshold",
                0.5,
                "Likeness below which a gate is shut, 0 to 1; it then changes nothing at all. Start at 0.5. Lower "
                "opens for prompts that only hint at the concept, and for its neighbours; published: 0, for transport.",
            ),
        ),
    )

    def merge(self, stack: Stack, task: Task | None, settings: Mapping[str, Value]) -> Merged:
        task, erasers = asked(task, self.spec.title), stack.active()
        groups = [eraser.recipe.names for eraser in erasers]
        fitted = gates()[str(settings["gate"])].fit(groups, task, float(settings["threshold"]))
        members = tuple(Member(gate, _whole(own, task)) for gate, own in zip(fitted, erasers, strict=True))
        return Merged(Eraser(stack.recipe(self.spec.name, settings), members=members))


MERGE = Gated()


def _whole(eraser: Eraser, task: Task) -> Eraser:
    """The eraser with sparse edits written out, which run beside a layer only so."""
    adapters = dict(eraser.adapters)
    for name, edit in eraser.adapters.items():
        if edit.indices is not None:
            shape = tuple(task.loaded().parameter(name).shape)
            adapters[name] = WeightEdit(dense=edit.delta(shape).flatten(1))
    return replace(eraser, adapters=adapters)
