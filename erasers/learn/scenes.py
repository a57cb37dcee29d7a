"""The prompts of a training, by role."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import cycle

from ..algebra.context import TEMPLATES
from ..concepts import Concept
from ..errors import ConceptError
from ..task import Task
from .moment import ANCHOR, CONCEPT, NAME, NULL, Scene

_NAME_WORDS = 3
_ARTICLES = ("a", "an", "the")


def concept_scenes(task: Task, templates: str) -> tuple[Scene, ...]:
    """Scenes of every concept in every sentence of a set of `TEMPLATES`; see `framed_scenes`."""
    return framed_scenes(task, TEMPLATES[templates])


def framed_scenes(task: Task, frames: Sequence[str]) -> tuple[Scene, ...]:
    """Every name of every concept in every frame, beside its replacement in it and the bare name.

    A concept without a replacement has the sentence without it for an anchor.

    Raises:
        ConceptError: there is nothing to erase, or the text encoder reads nothing in a name.
    """
    if not task.concepts.erase:
        raise ConceptError("There is no concept to erase.", "Connect a 'Concept to Erase' node.")
    for concept in task.concepts.erase:
        _check(task, concept)
    return tuple(
        {**scene(frame.format(name), filled(frame, concept.replacement)), NAME: name}
        for concept in task.concepts.erase
        for name in concept.names
        for frame in frames
    )


def filled(frame: str, name: str) -> str:
    """A sentence of a set with a name in it; with none, what is left: of "a tree, {}" that is "a tree"."""
    return frame.format(name) if name else " ".join(frame.format("").split()).strip(" ,")


def scene(concept: str, anchor: str = "") -> Scene:
    """A scene of what is erased and what stands for it."""
    return {NULL: "", CONCEPT: concept, ANCHOR: anchor}


def by_turns(scenes: Sequence[Scene], count: int) -> tuple[Scene, ...]:
    """A number of scenes, or one of each name where there are more names than that.

    Every name has a turn before any has another; a name's own scenes come in the order that they are given in, and
    all of them again when none is left. Scenes without a name are all of one.
    """
    turns: Counter[str] = Counter()
    places = []
    for own in scenes:
        name = own.get(NAME, "")
        places.append((turns[name], len(places)))
        turns[name] += 1
    ordered = [scenes[place] for _, place in sorted(places)]
    return tuple(ordered[i % len(ordered)] for i in range(max(count, len(turns))))


def kept_scenes(task: Task, templates: str = "none") -> tuple[Scene, ...]:
    """A scene for each prompt to hold, which plays the concept's role in it: for latents of its own.

    A prompt that is but a name stands in a sentence of the set, the next one in the next: a model that is held at bare
    names may hold them nowhere else.
    """
    prompts = zip(held_prompts(task), cycle(TEMPLATES[templates]))
    return tuple(scene(own, own) for own in (frame.format(p) if _is_name(p) else p for p, frame in prompts))


def held_prompts(task: Task) -> Sequence[str]:
    """The prompts to hold: preserved ones and what was erased before, without the empty one where there are others."""
    return [prompt for prompt in task.held if prompt] or [""]


def _is_name(prompt: str) -> bool:
    words = prompt.lower().split()
    return 0 < len(words) <= _NAME_WORDS and words[0] not in _ARTICLES


def _check(task: Task, concept: Concept) -> None:
    for prompt in task.encode(list(concept.names)):
        if prompt.last < prompt.start:
            raise ConceptError(
                f"'{prompt.text}' has no token that the text encoder knows.",
                "Name the concept in words of its language.",
            )
