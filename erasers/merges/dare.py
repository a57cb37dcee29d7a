"""DARE: drop and rescale (Yu et al., ICML 2024, arXiv 2311.03099).

Of each difference of weights a random part is dropped and the rest divided by the share that stays, so that the sum
stays the same on average; optionally signs are then elected as in TIES (arXiv 2306.01708). Computed by peft's own
functions on whole differences. Thin erasers lose their low rank by it, and with few entries left much of what they do.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..algebra.task_vectors import combined_parts, merge_utils, weights_of
from ..merging import Merged
from ..result import Eraser
from ..spec import MethodSpec, Parameter, Value
from ..stack import Stack
from ..task import Task


class Dare:
    """Drops entries at random and rescales the rest."""

    needs_model = False
    spec = MethodSpec(
        name="dare",
        title="DARE",
        paper="Yu et al., Language Models are Super Mario, ICML 2024 (arXiv 2311.03099)",
        summary="Drops a random part of each eraser's entries, makes the rest larger by as much, and adds up.",
        families=("demo",),
        parameters=(
            Parameter(
                "density",
                0.7,
                "Share of each difference's entries that stay, 0.01 to 1. Start at 0.7; below 0.3 little is left of "
                "thin erasers.",
                minimum=0.01,
            ),
            Parameter("elect_signs", False, "Settle signs by vote and average, as in TIES. Start with off."),
            Parameter(
                "seed", 0, "Seed of what is dropped; any whole number.", maximum=2**31 - 1, step=1, advanced=True
            ),
            Parameter(
                "rank",
                0,
                "Rank that the merged differences are brought to, up to 1024. Start at 0, which keeps them whole, in a "
                "large file, as dropping spreads them over all ranks; lower ranks lose more.",
                maximum=1024,
                step=1,
            ),
        ),
    )

    def merge(self, stack: Stack, task: Task | None, settings: Mapping[str, Value]) -> Merged:
        found, density, elect = merge_utils(), float(settings["density"]), bool(settings["elect_signs"])

        def combine(deltas: list[Tensor]) -> Tensor:
            if elect:
                return found.dare_ties(deltas, weights_of(deltas), density, "total")
            return found.dare_linear(deltas, weights_of(deltas), density)

        # peft draws from torch's own state, which is as before when this is over.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(settings["seed"]))
            parts, share = combined_parts(stack.active(), combine, int(settings["rank"]))
        note = f"Of every edited weight at least {share:.1%} of its squared size is kept." if settings["rank"] else ""
        return Merged(Eraser(stack.recipe(self.spec.name, settings), **parts), note)


MERGE = Dare()
