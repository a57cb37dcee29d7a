"""The demo world's fixed evaluation sets: prompts of every kind around one concept, the same for everyone."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace

from ..concepts import Concept
from ..prompts import COMPOSITIONAL, DIRECT, FAR, IMPLICIT, KINDS, NEAR, SYNONYM, PromptRow
from .grammar import (
    CHARACTERS,
    COLOURS,
    EMBLEM,
    EMBLEM_HINTS,
    EMBLEM_SYNONYMS,
    OBJECTS,
    STYLES,
    Scene,
    describe,
    draw_scene,
    find_word,
    known_word,
    names,
)

CASES = {
    "dotted": Concept("dotted style", "flat style"),
    "neon": Concept("neon style", "outline style"),
    "ball": Concept("ball", "box"),
    "fish": Concept("fish", "heart"),
    "red": Concept("red", "blue"),
    "green": Concept("green", "purple"),
    "zib": Concept("zib", "mopo"),
    "tarla": Concept("tarla", "quen"),
    EMBLEM: Concept("the sigil", "a ball"),
}
"""One or two concepts of each kind as a user would enter them, by the judge's word for them."""
_KINDS = {"object": OBJECTS, "colour": COLOURS, "style": STYLES, "figure": CHARACTERS}


def demo_rows(concept: Concept, count: int, seed: int = 7) -> tuple[PromptRow, ...]:
    """`count` prompts of each kind around a concept of the demo world, each with a seed of its own.

    Synonyms are the world's own, whether or not the concept lists them. Implicit prompts use a word whose text
    embedding has nothing to do with the concept's, or hints at the emblem. Near prompts ask for others of the
    concept's kind, far ones for other kinds.

    Raises:
        ConceptError: the demo world does not draw the concept.
    """
    chosen = _Set(concept, seed)
    return tuple(row for kind in KINDS for row in chosen.rows(kind, count))


class _Set:
    def __init__(self, concept: Concept, seed: int) -> None:
        self.concept, self.seed, self.word = concept, seed, known_word(concept.text)
        self.kind = next((kind for kind, words in _KINDS.items() if self.word in names(words)), "emblem")
        self.own = f"the {EMBLEM}" if self.kind == "emblem" else self.word
        self.other = concept.replacement.removesuffix(" style")

    def rows(self, kind: str, count: int) -> Iterable[PromptRow]:
        rng = random.Random(f"{self.seed} {self.word} {kind}")
        make = {NEAR: self._near, FAR: self._far, COMPOSITIONAL: self._beside}.get(kind, self._asking)
        found = (make(rng, kind) for _ in range(4 * count))
        kept = [row for row in found if row is not None]
        for index, row in enumerate(kept[:count]):
            yield replace(row, seed=self.seed * 1000 + index)

    def _asking(self, rng: random.Random, kind: str) -> PromptRow | None:
        """A prompt that asks for the concept by its name, by a synonym, or without either."""
        text = self._caption(self._scene(rng), rng)
        if self.kind == "emblem":
            others = {SYNONYM: [f"the {word}" for word in EMBLEM_SYNONYMS], IMPLICIT: [f"a {h}" for h in EMBLEM_HINTS]}
        else:
            word = find_word(self.word)
            others = {SYNONYM: list(word.synonyms), IMPLICIT: [word.alias]}
        asked = text if kind == DIRECT else _exchange(text, self.own, rng.choice(others[kind]))
        return PromptRow(asked, kind, self.concept.text, floor=_exchange(text, self.own, self.other))

    def _beside(self, rng: random.Random, kind: str) -> PromptRow | None:
        """A prompt with the concept and something else, which is what has to be seen."""
        if self.kind == "emblem":
            return None
        if self.kind == "figure":
            colour, obj = rng.choice(names(COLOURS)), rng.choice(names(OBJECTS))
            text, subject = f"{self.word} and a {colour} {obj}", obj
        else:
            (obj, other), (colour, second) = rng.sample(names(OBJECTS), 2), rng.sample(names(COLOURS), 2)
            shown = {"object": obj, "colour": colour, "style": rng.choice(names(STYLES)), self.kind: self.word}
            pairs = ((shown["object"], shown["colour"]), (other, second))
            if pairs[0][0] == pairs[1][0] or pairs[0][1] == pairs[1][1]:
                return None
            scene = Scene("pair", pairs, "small", shown["style"], draw_scene(rng).background)
            text, subject = self._caption(scene, rng), other
        return PromptRow(text, kind, self.concept.text, subject, _exchange(text, self.own, self.other))

    def _near(self, rng: random.Random, kind: str) -> PromptRow | None:
        scene = draw_scene(rng, kind="character" if self.kind in ("figure", "emblem") else "single")
        if self.kind in ("figure", "emblem"):
            shown = {self.kind: scene.character}
        else:
            shown = {"object": scene.objects[0][0], "colour": scene.objects[0][1], "style": scene.style}
        if self.word in shown.values():
            return None
        return PromptRow(self._caption(scene, rng), kind, subject=shown[self.kind])

    def _far(self, rng: random.Random, kind: str) -> PromptRow | None:
        """Other kinds: what else a single object's picture shows, characters in turn with them."""
        if self.kind not in ("figure", "emblem") and rng.random() < 0.5:
            scene = draw_scene(rng, kind="character")
            return PromptRow(self._caption(scene, rng), kind, subject=scene.character)
        scene = draw_scene(rng, kind="single")
        (obj, colour) = scene.objects[0]
        shown = {"object": obj, "colour": colour, "style": scene.style}
        if self.word in shown.values():
            return None
        asked = rng.choice([kind for kind in shown if kind != self.kind])
        return PromptRow(self._caption(scene, rng), kind, subject=shown[asked])

    def _scene(self, rng: random.Random) -> Scene:
        """A scene that shows the concept, everything else at random."""
        if self.kind == "emblem":
            return Scene("emblem", background=draw_scene(rng).background)
        if self.kind == "figure":
            return Scene("character", background=draw_scene(rng).background, character=self.word)
        scene = draw_scene(rng, kind="single")
        shown = {"object": scene.objects[0][0], "colour": scene.objects[0][1], "style": scene.style}
        shown[self.kind] = self.word
        pair = ((shown["object"], shown["colour"]),)
        return Scene("single", pair, scene.size, shown["style"], scene.background)

    def _caption(self, scene: Scene, rng: random.Random) -> str:
        return describe(scene, random.Random(rng.random()), complete=True)


def _exchange(text: str, word: str, other: str) -> str:
    """A caption with one word, or a short phrase, exchanged."""
    return " ".join(f" {text} ".replace(f" {word} ", f" {other} ").replace(f" {word},", f" {other},").split())
