"""One erasure in the demo world, judged: what is gone, what is kept, what other words bring back.

Every rate is the share of pictures in which the judge reads what it is asked for.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from ..concepts import Concept, ConceptList
from ..registry import families, method_named
from ..result import ContextOperator
from ..task import Task
from .gallery import Gallery
from .grammar import CHARACTERS, COLOURS, OBJECTS, STYLES, Scene, Word, describe, draw_scene
from .judge import Judge, Reading

KINDS = {"object": OBJECTS, "colour": COLOURS, "style": STYLES, "character": CHARACTERS}


@dataclass(frozen=True)
class Case:
    """A concept to erase: its kind, its name and the name that replaces it."""

    kind: str
    name: str
    replacement: str

    @property
    def word(self) -> Word:
        """The concept with its other names."""
        return next(word for word in KINDS[self.kind] if word.name == self.name)


@dataclass(frozen=True)
class Rates:
    """Rates in 0..1. `direct` to `alias`: the erased concept is read; `near`, `far`: what was asked for is read.

    `before`, `synonym` and `alias` are taken from half the pictures.

    Attributes:
        before, direct: prompts that name the concept, untouched and edited model.
        floor: prompts that name the replacement, untouched model.
        synonym, alias: prompts with another name of it, edited model.
        near_before, near: prompts for others of its kind, the kind read right.
        far_before, far: prompts for other kinds, those kinds read right.
    """

    before: float
    floor: float
    direct: float
    synonym: float
    alias: float
    near_before: float
    near: float
    far_before: float
    far: float


class Bench:
    """Draws and judges with one gallery; pictures of the untouched model are drawn once."""

    def __init__(self, gallery: Gallery, judge: Judge, pictures: int = 200, steps: int = 20, seed: int = 7) -> None:
        self.gallery, self.judge, self.pictures, self.steps, self.seed = gallery, judge, pictures, steps, seed
        self._untouched: dict[tuple[str, ...], list[Reading]] = {}

    @cached_property
    def _pool(self) -> dict[str, list[Scene]]:
        rng = random.Random(self.seed)
        return {
            "single": [draw_scene(rng, i % 2 == 0, "single") for i in range(self.pictures * 7 // 5)],
            "character": [draw_scene(rng, kind="character") for _ in range(self.pictures * 7 // 5)],
        }

    def operator(
        self, case: Case, settings: Mapping[str, object], keep: ConceptList, method: str = "uce"
    ) -> ContextOperator:
        """Fit `method` to a case; `keep` holds what to preserve."""
        fit = method_named(method)
        family = families()["demo"]
        phrase = "{} style" if case.kind == "style" else "{}"
        concept = Concept(phrase.format(case.name), phrase.format(case.replacement) if case.replacement else "")
        task = Task(keep.with_concept(concept), family, self.gallery.encoder, self.gallery.encode)
        return fit.fit(task, fit.spec.settings(settings)).context[family.stream]

    def rates(self, case: Case, operator: ContextOperator, fast: bool = False) -> Rates:
        """Judge an operator; `fast` leaves out the words and pictures that a sweep can do without (as nan)."""
        scenes = self._scenes_of(case)
        shows = _shows(case)
        missing = float("nan")

        half = len(scenes) // 2

        def rate(word: str, edit: ContextOperator | None, count: int = len(scenes)) -> float:
            captions = [self._caption(scene, case, word, i) for i, scene in enumerate(scenes[:count])]
            readings = self._read(captions, edit)
            return _mean([shows(reading) for reading in readings])

        near_scenes, far_scenes = self._others(case)
        near_kinds = [case.kind] if case.kind != "character" else ["figure"]
        far_kinds = ["object", "colour", "style"] if case.kind == "character" else ["figure"]
        return Rates(
            before=missing if fast else rate(case.name, None, half),
            floor=missing if fast else rate(case.replacement, None),
            direct=rate(case.name, operator),
            synonym=missing if fast else rate(case.word.synonyms[0], operator, half),
            alias=missing if fast else rate(case.word.alias, operator, half),
            near_before=self._accuracy(near_scenes, near_kinds, None),
            near=self._accuracy(near_scenes, near_kinds, operator),
            far_before=self._accuracy(far_scenes, far_kinds, None),
            far=self._accuracy(far_scenes, far_kinds, operator),
        )

    def _scenes_of(self, case: Case) -> list[Scene]:
        """Scenes that show the concept, everything else at random."""
        rng = random.Random(f"{self.seed} {case}")
        scenes = []
        for _ in range(self.pictures):
            if case.kind == "character":
                scenes.append(Scene("character", background=draw_scene(rng).background, character=case.name))
                continue
            scene = draw_scene(rng, kind="single")
            (obj, colour), style = scene.objects[0], scene.style
            shown = {"object": obj, "colour": colour, "style": style, case.kind: case.name}
            pair = ((shown["object"], shown["colour"]),)
            scenes.append(Scene("single", pair, scene.size, shown["style"], scene.background))
        return scenes

    def _others(self, case: Case) -> tuple[list[Scene], list[Scene]]:
        near = self._pool["character" if case.kind == "character" else "single"]
        far = self._pool["single" if case.kind == "character" else "character"]
        near = [scene for scene in near if case.name not in _truth(scene).values()]
        return near[: self.pictures], far[: self.pictures]

    def _caption(self, scene: Scene, case: Case, word: str, index: int) -> str:
        """The scene's caption with the concept's word exchanged."""
        text = describe(scene, random.Random(f"{self.seed} {index}"), complete=True)
        return " ".join(
            word + part[len(case.name) :] if part.rstrip(",") == case.name else part for part in text.split()
        )

    def _accuracy(self, scenes: Sequence[Scene], kinds: list[str], operator: ContextOperator | None) -> float:
        captions = [describe(s, random.Random(f"{self.seed} {i}"), complete=True) for i, s in enumerate(scenes)]
        pairs = list(zip(scenes, self._read(captions, operator), strict=True))
        return _mean([getattr(reading, kind) == _truth(scene)[kind] for scene, reading in pairs for kind in kinds])

    def _read(self, captions: list[str], operator: ContextOperator | None) -> list[Reading]:
        key = tuple(captions)
        if operator is None and key in self._untouched:
            return self._untouched[key]
        readings = self.judge.read(self.gallery.draw(captions, self.seed, operator, steps=self.steps))
        if operator is None:
            self._untouched[key] = readings
        return readings


def _truth(scene: Scene) -> dict[str, str]:
    if scene.kind == "character":
        return {"figure": scene.character}
    (obj, colour) = scene.objects[0]
    return {"object": obj, "colour": colour, "style": scene.style}


def _shows(case: Case) -> Callable[[Reading], bool]:
    kind = "figure" if case.kind == "character" else case.kind
    return lambda reading: getattr(reading, kind) == case.name


def _mean(values: Sequence[bool]) -> float:
    return sum(values) / len(values)
