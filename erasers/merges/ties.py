"""TIES: trim, elect signs, merge (Yadav et al., NeurIPS 2023, arXiv 2306.01708).

Of each difference of weights only the largest entries stay; each entry's sign is that of the sum over all erasers;
what stays and agrees with it is averaged. Computed by peft's own function on whole differences: on the factors of
adapters, as peft's own merging does by default, signs say nothing about the sign of the product.

Erasers of different concepts hardly overlap, and an average halves what only some of them hold where others hold the
same entry: choose it where erasers of one concept are to agree.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..algebra.task_vectors import combined_parts, merge_utils, weights_of
from ..merging import Merged
from ..result import Eraser
from ..spec import MethodSpec, Parameter, Value
from ..stack import Stack
from ..task import Task


class Ties:
    """Trims, elects signs and averages."""

    needs_model = False
    spec = MethodSpec(
        name="ties",
        title="TIES",
        paper="Yadav et al., TIES-Merging, NeurIPS 2023 (arXiv 2306.01708)",
        summary="Keeps each eraser's largest entries, settles every entry's sign by vote, and averages what agrees.",
        families=("demo",),
        parameters=(
            Parameter(
                "density",
                0.5,
                "Share of each difference's entries that stay, 0.01 to 1. Start at 0.5; published: 0.2.",
                minimum=0.01,
            ),
            Parameter(
                "signs",
                "total",
                "How signs are elected: by the sum of the entries (total), or by how many there are of each "
                "(frequency). Start with total, as published.",
                choices=("total", "frequency"),
                advanced=True,
            ),
            Parameter(
                "rank",
                16,
                "Rank that the merged differences are brought to, up to 1024. Start at 16; more keeps more, 0 keeps "
                "them whole, in a large file.",
                maximum=1024,
                step=1,
            ),
        ),
    )

    def merge(self, stack: Stack, task: Task | None, settings: Mapping[str, Value]) -> Merged:
        found, density, signs = merge_utils(), float(settings["density"]), str(settings["signs"])

        def combine(deltas: list[Tensor]) -> Tensor:
            return found.ties(deltas, weights_of(deltas), density, signs)

        parts, share = combined_parts(stack.active(), combine, int(settings["rank"]))
        note = f"Of every edited weight at least {share:.1%} of its squared size is kept."
        return Merged(Eraser(stack.recipe(self.spec.name, settings), **parts), note)


MERGE = Ties()
