"""LEACE of the prompt's features (Belrose et al., NeurIPS 2023, arXiv 2306.03819): the method `leace`, while drawing.

The prompt's features pass r(x) = x - eta (x - leace(x)); those of the negative stay, so that a negative prompt can
still name the concept, and no weight is touched. See methods/leace.py for the map itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..algebra.parameters import templates
from ..guard import Guarding, guarded_names
from ..learn.started import edited, fitted
from ..result import ContextOperator
from ..spec import MethodSpec, Parameter, Value
from ..task import Task
from ..window import Window, window_of, window_settings


@dataclass(frozen=True)
class Projected:
    """The text part: an operator on the prompt's features, in a window."""

    operator: ContextOperator
    window: Window

    def holds(self, reading: Any, percent: float) -> bool:
        return self.window.holds(percent)

    def edit(self, states: Tensor, reading: Any) -> Tensor:
        return edited(self.operator, states[None])[0]


class LeaceGuard:
    """Takes away of the prompt's features what a linear reader can tell of the concept."""

    needs = "Works with any model that reads text features token by token, at CFG 1 too. Costs next to nothing."
    spec = MethodSpec(
        name="leace",
        title="LEACE projection",
        paper="Belrose et al., LEACE: Perfect linear concept erasure in closed form, NeurIPS 2023 (arXiv 2306.03819)",
        summary="Projects the prompt's features so that no linear reader tells the concept; the negative's stay.",
        families=("demo",),
        parameters=(
            Parameter(
                "eta",
                1.0,
                "How far features are moved, 0 to 1.5. 1 is the projection itself; above, it overshoots.",
                maximum=1.5,
            ),
            templates("object"),
            *window_settings(),
        ),
        small={"eta": 1.5},
    )

    def plan(self, task: Task, settings: Mapping[str, Value]) -> Guarding:
        """A text part that does not read the prompt, for all text features by themselves."""
        guarded_names(task)
        given, window, parts = {"templates": settings["templates"]}, window_of(settings), dict[str, Projected]()
        for own in (task, *task.further):
            operator = fitted(own, "leace", given).scaled(float(settings["eta"]))
            parts[own.family.stream] = Projected(operator, window)
        return Guarding(text=parts.pop(task.family.stream), further=parts)


GUARD = LeaceGuard()
