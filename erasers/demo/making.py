"""An eraser of the demo world by name, fitted or trained, with default settings."""

from __future__ import annotations

from ..learn.loop import Job, train
from ..registry import method_named, methods, recipe_named, recipes
from ..result import Eraser
from ..task import Task

ALONE = {"uce_debias"}
"""Methods that erase nothing."""


def eraser_names() -> tuple[str, ...]:
    """Every method that erases, then every recipe."""
    return *(name for name in methods() if name not in ALONE), *recipes()


def make_eraser(name: str, task: Task) -> Eraser:
    """Fit the method, or train by the recipe, of this name.

    Raises:
        LetheError: it refuses the task, or there is none of this name.
    """
    if name not in recipes():
        method = method_named(name)
        return method.fit(task, method.spec.settings({}))
    recipe = recipe_named(name)
    settings = recipe.spec.settings({})
    return train(task, Job(name, settings, recipe.plan(task, settings), recipe.small)).eraser
