"""The rows of the leaderboard: what erases a concept of the demo world, by name, and with which settings."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import HostError
from ..learn.loop import Job, train
from ..registry import guard_named, guards, method_named, methods, recipe_named, recipes
from ..result import Eraser
from ..spec import MethodSpec, Value
from ..task import Task

ALONE = {"uce_debias", "geom_erasing", "sfd"}
"""What has no row: it erases nothing, needs pictures of the user's, or draws in one step alone."""
GUARD = "guard:"
GUIDED = frozenset({f"{GUARD}negative"})
"""What acts in the guidance alone, and refuses attacks that look without any."""


def eraser_names() -> tuple[str, ...]:
    """Every method that erases, then every recipe that does."""
    return tuple(name for name in (*methods(), *recipes()) if name not in ALONE)


def guard_names() -> tuple[str, ...]:
    """Every guard of prompts, under a name that no eraser has; guards act in ComfyUI's own sampling."""
    return tuple(f"{GUARD}{name}" for name, guard in guards().items() if not guard.spec.asks)


def recipe_settings(name: str, word: str) -> dict[str, Value]:
    """A recipe's settings for a word: its defaults, but sentences for styles where the word is one."""
    return _worded(recipe_named(name).spec, {}, word)


def guard_settings(name: str, word: str) -> dict[str, Value]:
    """A guard's settings for a word: those for small models, but sentences for styles where the word is one."""
    spec = guard_named(name).spec
    return _worded(spec, spec.small, word)


def _worded(spec: MethodSpec, given: Mapping[str, Value], word: str) -> dict[str, Value]:
    settings = spec.settings(given)
    styled = word.endswith("style") and settings.get("templates") == "scenes"
    return {**settings, "templates": "styled scenes"} if styled else settings


def make_eraser(name: str, task: Task) -> Eraser:
    """Fit the method, or train by the recipe, of this name.

    Raises:
        HostError: it is a guard.
        LetheError: it refuses the task, or there is none of this name.
    """
    if name.startswith(GUARD):
        raise HostError(f"'{name}' acts in ComfyUI's sampling.", "Send it to a server of it: --servers URL.")
    if name not in recipes():
        method = method_named(name)
        return method.fit(task, method.spec.settings({}))
    recipe = recipe_named(name)
    settings = recipe_settings(name, task.concepts.erase[0].text)
    return train(task, Job(name, settings, recipe.plan(task, settings), recipe.small)).eraser
