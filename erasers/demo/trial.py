"""One erasure in the demo world, judged: what is gone, what is kept, what other words bring back.

Every rate is the share of pictures in which the judge reads what it is asked for.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from torch import Tensor

from ..concepts import Concept, ConceptList
from ..registry import method_named
from ..result import Eraser
from .gallery import Gallery
from .grammar import CHARACTERS, COLOURS, OBJECTS, STYLES, Scene, Word, describe, draw_scene
from .judge import Judge, Reading

DRAWN = ["object", "colour", "style"]
KINDS = {"object": OBJECTS, "colour": COLOURS, "style": STYLES, "character": CHARACTERS}


@dataclass(frozen=True)
class Case:
    """A concept to erase: its kind, its name and the name that replaces it; `told` says its synonyms, too."""

    kind: str
    name: str
    replacement: str
    told: bool = field(default=False, repr=False)  # what is drawn is told by the rest

    @property
    def concept(self) -> Concept:
        """What a user would enter."""
        phrase = "{} style" if self.kind == "style" else "{}"
        synonyms = tuple(map(phrase.format, self.word.synonyms)) if self.told else ()
        return Concept(phrase.format(self.name), phrase.format(self.replacement) if self.replacement else "", synonyms)

    @property
    def read_as(self) -> str:
        """What the judge calls its kind."""
        return "figure" if self.kind == "character" else self.kind

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


@dataclass(frozen=True)
class Gone:
    """How often an erased concept is read: the first five of `Rates`."""

    before: float
    floor: float
    direct: float
    synonym: float
    alias: float


@dataclass(frozen=True)
class Kept:
    """How often what was not erased is read right: the last four of `Rates`."""

    near_before: float
    near: float
    far_before: float
    far: float


class Bench:
    """Draws and judges with one gallery; pictures of the untouched model are drawn once."""

    def __init__(self, gallery: Gallery, judge: Judge, pictures: int = 200, steps: int = 20, seed: int = 7) -> None:
        self.gallery, self.judge, self.pictures, self.steps, self.seed = gallery, judge, pictures, steps, seed
        self._untouched: dict[tuple[str, ...], list[Reading]] = {}

    def fit(
        self, cases: Sequence[Case], settings: Mapping[str, object], keep: ConceptList, method: str = "uce"
    ) -> Eraser:
        """Fit `method` to one case or several at once; `keep` holds what to preserve."""
        chosen = method_named(method)
        for case in cases:
            keep = keep.with_concept(case.concept)
        return chosen.fit(self.gallery.task(keep), chosen.spec.settings(settings))

    def rates(self, case: Case, eraser: Eraser, fast: bool = False) -> Rates:
        """Judge an eraser; `fast` leaves out the words and pictures that a sweep can do without (as nan)."""
        erased = self.gallery.erased(eraser)
        return Rates(**asdict(self.gone(case, erased, fast)), **asdict(self.kept([case], erased)))

    def gone(self, case: Case, erased: Gallery, fast: bool = False) -> Gone:
        """Judge whether one concept is gone from a gallery."""
        missing, half = float("nan"), self.pictures // 2

        def rate(word: str, gallery: Gallery | None, count: int = self.pictures) -> float:
            readings = self._read(self.captions(case, word)[:count], gallery)
            return _mean([reading.shows(case.read_as, case.name) for reading in readings])

        return Gone(
            before=missing if fast else rate(case.name, None, half),
            floor=missing if fast else rate(case.replacement, None),
            direct=rate(case.name, erased),
            synonym=missing if fast else rate(case.word.synonyms[0], erased, half),
            alias=missing if fast else rate(case.word.alias, erased, half),
        )

    def captions(self, case: Case, word: str) -> list[str]:
        """Captions of scenes that show the concept, which is called by `word` in them."""
        return [self._caption(scene, case, word, i) for i, scene in enumerate(self._scenes_of(case))]

    def share(self, case: Case, pictures: Tensor) -> float:
        """The share of pictures `[n, 3, h, w]` in which the concept is read."""
        return _mean([reading.shows(case.read_as, case.name) for reading in self.judge.read(pictures)])

    def kept(self, cases: Sequence[Case], erased: Gallery) -> Kept:
        """Judge what a gallery keeps: near is the rest of the erased kinds, far the other kinds."""
        kinds, names = {case.kind for case in cases}, {case.name for case in cases}
        drawn = [kind for kind in DRAWN if kind in kinds]
        near, far = [("single", drawn)] if drawn else [], [("single", DRAWN)]
        if "character" in kinds:
            near.append(("character", ["figure"]))
        if drawn:
            far = [("single", ["background"])] if "character" in kinds else [("character", ["figure"])]
        sides = [
            _mean([right for kind, read in side for right in self._right(kind, names, read, gallery)])
            for side in (near, far)
            for gallery in (None, erased)
        ]
        return Kept(*sides)

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

    def _pool(self, kind: str, erased: set[str]) -> list[Scene]:
        """Scenes of a kind that show nothing erased."""
        rng, found, index = random.Random(f"{self.seed} {kind}"), [], 0
        while len(found) < self.pictures:
            scene = draw_scene(rng, index % 2 == 0 and kind == "single", kind)
            index += 1
            if not erased & set(_truth(scene).values()):
                found.append(scene)
        return found

    def _caption(self, scene: Scene, case: Case, word: str, index: int) -> str:
        """The scene's caption with the concept's word exchanged."""
        text = describe(scene, random.Random(f"{self.seed} {index}"), complete=True)
        return " ".join(
            word + part[len(case.name) :] if part.rstrip(",") == case.name else part for part in text.split()
        )

    def _right(self, kind: str, erased: set[str], read: list[str], gallery: Gallery | None) -> list[bool]:
        """Whether each of the kinds in `read` is read right off each scene that shows nothing erased."""
        scenes = self._pool(kind, erased)
        captions = [describe(s, random.Random(f"{self.seed} {i}"), complete=True) for i, s in enumerate(scenes)]
        pairs = list(zip(scenes, self._read(captions, gallery), strict=True))
        return [getattr(reading, name) == _truth(scene)[name] for scene, reading in pairs for name in read]

    def _read(self, captions: list[str], gallery: Gallery | None) -> list[Reading]:
        """Readings of pictures drawn by an erased gallery, or by the untouched one."""
        key = tuple(captions)
        if gallery is None and key in self._untouched:
            return self._untouched[key]
        readings = self.judge.read((gallery or self.gallery).draw(captions, self.seed, steps=self.steps))
        if gallery is None:
            self._untouched[key] = readings
        return readings


def _truth(scene: Scene) -> dict[str, str]:
    if scene.kind == "character":
        return {"figure": scene.character}
    (obj, colour) = scene.objects[0]
    return {"object": obj, "colour": colour, "style": scene.style, "background": scene.background}


def _mean(values: Sequence[bool]) -> float:
    return sum(values) / len(values)
