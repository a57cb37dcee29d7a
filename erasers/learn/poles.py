"""Targets that shift a prediction along the difference of two prompts' predictions, and their prompts."""

from __future__ import annotations

from collections.abc import Sequence

from ..algebra.context import TEMPLATES
from ..task import Task
from .moment import ANCHOR, CONCEPT, NAME, NULL, TEACHER, Scene
from .scenes import concept_scenes, scene

NEUTRAL = "neutral"
"""Role: the subject that both poles have in common."""


def pole_shift(start: str, plus: str, minus: str, by: float) -> dict[tuple[str, str], float]:
    """The linear target T(start) + by [T(plus) - T(minus)] over roles, of which two may be the same."""
    target: dict[tuple[str, str], float] = {}
    for role, weight in ((start, 1.0), (plus, by), (minus, -by)):
        target[TEACHER, role] = target.get((TEACHER, role), 0.0) + weight
    return target


def pole_scenes(task: Task, templates: str, attributes: Sequence[str] = ()) -> tuple[Scene, ...]:
    """Every name of every concept against its replacement in every sentence, beside the sentence with neither.

    Args:
        attributes: are set before all prompts of a scene, in scenes of their own beside those without.

    Raises:
        ConceptError: there is nothing to erase, or the text encoder reads nothing in a name.
    """
    # For its checks: this makes the same scenes, without the neutral prompt.
    concept_scenes(task, templates)
    return tuple(
        {**_with(attribute, scene(frame.format(name), frame.format(concept.replacement)), frame.format("")), NAME: name}
        for concept in task.concepts.erase
        for name in concept.names
        for frame in TEMPLATES[templates]
        for attribute in ("", *attributes)
    )


def _with(attribute: str, poles: Scene, neutral: str) -> Scene:
    """The scene with an attribute before its prompts."""
    prompts = {CONCEPT: poles[CONCEPT], ANCHOR: poles[ANCHOR], NEUTRAL: neutral}
    return {NULL: "", **{role: " ".join(f"{attribute} {prompt}".split()) for role, prompt in prompts.items()}}
