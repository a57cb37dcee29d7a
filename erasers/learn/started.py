"""Training that begins where a closed-form method ended: its context operator stands in front of what is trained.

The operator is fixed. It is part of the student and of the eraser that comes out; the teacher is the model before both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import SettingError
from ..model import Model
from ..registry import method_named
from ..result import ContextOperator
from ..sites import Family
from ..spec import Value
from ..task import Task
from .moment import Features, Moment
from .run import Run
from .trainables import CONTEXT, Parameterisation, Trainables


@dataclass(frozen=True)
class Started:
    """Another parameterisation behind an operator.

    Attributes:
        operator: the fixed edit of the text features.
        inner: what is trained; it edits no text features itself.
    """

    operator: ContextOperator
    inner: Parameterisation

    def build(self, model: Model, family: Family, rank: int, generator: torch.Generator) -> Trainables:
        found = self.inner.build(model, family, rank, generator)
        edit, parts = found.edit, found.parts

        def both(features: Tensor) -> Tensor:
            return edit(edited(self.operator, features) if found.on else features)

        def all_parts(tensors: Mapping[str, Tensor]) -> Mapping[str, Mapping[str, Any]]:
            own = parts(tensors)
            if CONTEXT in own:
                raise SettingError("Two edits of the text features cannot be one.", "Train another part of the model.")
            return {**own, CONTEXT: {family.stream: self.operator}}

        found.edit, found.parts = both, all_parts
        return found


@dataclass(frozen=True)
class StartFeatures:
    """Features of a prompt as the operator leaves them: with the teacher's weights, the model that training began at.

    Attributes:
        operator: the fixed edit.
        prompt: the same for every row.
        rows: name of the latents that say how many.
    """

    operator: ContextOperator
    prompt: str
    rows: str

    def make(self, run: Run, moment: Moment) -> Features:
        plain = run.features([self.prompt] * len(moment[self.rows].x))
        return replace(plain, states=edited(self.operator, plain.states))


def fitted(task: Task, method: str, settings: Mapping[str, Value]) -> ContextOperator:
    """What a closed-form method fits to a task's text features, by the method's name.

    Pooled features are left alone, as training leaves them.

    Raises:
        LetheError: the method cannot be fitted to the task, or edits something else.
    """
    found = method_named(method)
    eraser = found.fit(replace(task, pooled=False), found.spec.settings(settings))
    if set(eraser.context) != {task.family.stream} or eraser.adapters or eraser.text_encoder:
        raise SettingError(f"{found.spec.title} edits more than the text features.", "Begin with another method.")
    return eraser.context[task.family.stream]


def edited(operator: ContextOperator, features: Tensor) -> Tensor:
    """Features `[n, tokens, e]`, the leading ones of which pass the operator."""
    width = operator.width
    moved = operator.to(features.device).apply(features[..., :width])
    return torch.cat([moved, features[..., width:]], dim=-1)
