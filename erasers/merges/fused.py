"""Fused: one edit per weight that does for each concept's prompts what that concept's own eraser does (MACE, Lu et
al., CVPR 2024, arXiv 2403.06135, section 3.4). The mathematics stand in algebra/fusion.py.

Differs from the official program: erasers of any method take part whose effect lies on the weights that read text
features, operators on the features included; the ridge may be taken in units of the prompts' own size.
Official code read, not copied: Shilin-LU/MACE (MIT).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ..algebra import parameters as shared
from ..algebra.context import RELATIVE, TEMPLATES
from ..algebra.fusion import fuse
from ..algebra.held import hold
from ..algebra.tokens import ALL
from ..merging import Merged, asked, site_edits
from ..result import Eraser
from ..spec import MethodSpec, Parameter, Value
from ..stack import Stack
from ..task import Task


class Fused:
    """Solves for edits that equal each eraser on its own prompts and the model on those that are preserved."""

    needs_model = True
    spec = MethodSpec(
        name="fused",
        title="Fused (MACE)",
        paper="Lu et al., MACE: Mass Concept Erasure in Diffusion Models, CVPR 2024 (arXiv 2403.06135)",
        summary="Solves for one edit that does on each concept's prompts what its own eraser does, and no more.",
        families=("demo",),
        parameters=(
            shared.templates("scenes"),
            shared.lam(0.01, "published: 10 for objects and 0 for people and styles, absolute"),
            shared.lam_scale(),
            Parameter(
                "preserve_scale",
                1.0,
                "Weight of each preserved prompt against each of the concepts' prompts, 0 to 1000. Start at 1. Higher "
                "keeps more and erases less.",
                maximum=1000.0,
            ),
        ),
    )

    def merge(self, stack: Stack, task: Task | None, settings: Mapping[str, Value]) -> Merged:
        task, erasers = asked(task, self.spec.title), stack.active()
        adapters = [site_edits(eraser, task, self.spec.title) for eraser in erasers]
        frames = TEMPLATES[str(settings["templates"])]
        names = [eraser.recipe.names for eraser in erasers]
        rows = []
        for own in names:
            prompts = task.encode([frame.format(name) for name in own for frame in frames])
            rows.append(torch.cat([prompt.states[prompt.start :] for prompt in prompts]))
        unit = float(torch.cat(rows).square().sum(1).mean()) if settings["lam_scale"] == RELATIVE else 1.0
        scale = float(settings["preserve_scale"])
        kept = hold(task, ALL).tokens if scale else None
        edits = fuse(adapters, rows, kept, scale, float(settings["lam"]) * unit)
        return Merged(Eraser(stack.recipe(self.spec.name, settings), adapters=edits))


MERGE = Fused()
