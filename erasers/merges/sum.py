"""The plain sum: what all erasers of a stack add, added up.

    D = sum_i s_i B_i A_i

The products are summed, as factors side by side; (sum B_i)(sum A_i) would add what no eraser asked for. Operators on
text features move them by the sum of their moves, so the order does not matter. The sum may be made smaller by its
singular value decomposition (Eckart and Young, 1936).
"""

from __future__ import annotations

from collections.abc import Mapping

from ..algebra.edits import shrunk, summed_parts
from ..merging import Merged
from ..result import Eraser
from ..spec import MethodSpec, Parameter, Value
from ..stack import Stack
from ..task import Task


class Sum:
    """Adds erasers up."""

    needs_model = False
    spec = MethodSpec(
        name="sum",
        title="Plain sum",
        paper="no paper: W + sum of all edits",
        summary="Adds up what all erasers do, exactly, in one file.",
        families=("demo",),
        parameters=(
            Parameter(
                "rank",
                0,
                "Largest rank of each edited weight; 0 keeps everything. Lower makes a smaller file and drops what is "
                "least; the node says how much. Start at 0, or at 16 for a hundred erasers.",
                maximum=1024,
                step=1,
            ),
        ),
    )

    def merge(self, stack: Stack, task: Task | None, settings: Mapping[str, Value]) -> Merged:
        parts = summed_parts(stack.active())
        rank, shares = int(settings["rank"]), [1.0]
        if rank:
            for part in ("adapters", "text_encoder"):
                small = {name: shrunk(edit, rank) for name, edit in parts[part].items()}
                parts[part] = {name: edit for name, (edit, _) in small.items()}
                shares += [share for _, share in small.values()]
        note = f"Of every edited weight at least {min(shares):.1%} of its squared size is kept." if rank else ""
        return Merged(Eraser(stack.recipe(self.spec.name, settings), **parts), note)


MERGE = Sum()
