"""A method on a model whose text enters by several streams of features, each by weights of its own.

Each stream is fitted by itself, by its own features of the same prompts: what the others do is not known to it. So the
operators, and the edits of the weights behind them, are those of the method's own equations for every stream. A method
that has to know them all, because it looks at what is drawn with them, edits every stream itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from .registry import Method
from .result import Eraser
from .spec import Value
from .task import Task


def fit_streams(method: Method, task: Task, settings: Mapping[str, Value]) -> Eraser:
    """Fit a method to all text features of a task's model; once, where it edits something else.

    Raises:
        LetheError: the method cannot be fitted to one of them.
    """
    eraser = method.fit(task, settings)
    edits_text = eraser.context or any(re.search(task.family.sites, name) for name in eraser.adapters)
    for own in task.further if edits_text else ():
        if own.family.stream in eraser.context:
            continue
        found = method.fit(own, settings)
        eraser = replace(
            eraser, context={**eraser.context, **found.context}, adapters={**eraser.adapters, **found.adapters}
        )
    return eraser
