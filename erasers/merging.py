"""What a way of merging is given, and what it gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from .algebra.edits import summed_by_name
from .errors import SettingError
from .result import Eraser, WeightEdit
from .spec import MethodSpec, Value
from .stack import Stack
from .task import Task


@dataclass(frozen=True)
class Merged:
    """One eraser in place of a stack, and what is to be known of how it came about."""

    eraser: Eraser
    note: str = ""


class Merge(Protocol):
    """A way to make one eraser of a stack; nothing in the stack is changed.

    Attributes:
        needs_model: whether it wants the model and its text encoder.
    """

    spec: MethodSpec
    needs_model: bool

    def merge(self, stack: Stack, task: Task | None, settings: Mapping[str, Value]) -> Merged:
        """Merge with checked settings (`spec.settings`).

        Args:
            task: the stack's concepts on a model; None where none is at hand.

        Raises:
            LetheError: the stack holds something that cannot be merged so, or the task is missing.
        """
        ...


def asked(task: Task | None, title: str) -> Task:
    """The task; SettingError where there is none."""
    if task is None:
        raise SettingError(f"{title} looks at the model and its text encoder.", "Connect MODEL and CLIP.")
    return task


def site_edits(eraser: Eraser, task: Task, title: str) -> dict[str, WeightEdit]:
    """All that an eraser does, as edits of the weights that read text features, by site.

    An operator M on the features is the edit W M of every weight W.

    Raises:
        SettingError: it does something else, too.
    """
    weights = task.loaded().weights()
    operators = [operator for stream, operator in eraser.context.items() if stream == task.family.stream]
    strays = [name for name in eraser.adapters if name not in weights]
    biased = any(operator.bias is not None for operator in operators)
    if strays or eraser.text_encoder or eraser.modules or biased or len(operators) < len(eraser.context):
        names = ", ".join(str(concept["text"]) for concept in eraser.recipe.concepts)
        raise SettingError(
            f"{title} merges edits of the weights that read text features, and the eraser of {names} "
            f"({eraser.recipe.method}) is more than that.",
            "Choose mode sum or gated.",
        )
    parts = [dict(eraser.adapters)]
    for operator in operators:
        made = {name: operator.factors(weight) for name, weight in weights.items()}
        parts.append({name: WeightEdit(up=up, down=down) for name, (up, down) in made.items()})
    return summed_by_name(parts)
