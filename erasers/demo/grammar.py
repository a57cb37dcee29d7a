"""The language of the demo world: its words, its scenes and the captions that describe them.

A `Scene` says what a picture shows. `describe` writes one of many captions for it, and
`draw_scene` picks a scene at random from the training distribution. Everything is driven by a
`random.Random` that the caller passes, so the same seed gives the same world everywhere.
"""

from __future__ import annotations

import random
from contextlib import suppress
from dataclasses import dataclass

from ..errors import ConceptError


@dataclass(frozen=True)
class Word:
    """One concept of the world and the words that name it.

    Attributes:
        name: the usual word.
        synonyms: words that the text encoder has learned together with the concept's pictures.
        alias: a word that only the denoiser has learned to draw as this concept; for the text
            encoder it names an unrelated glyph, so its embedding has nothing to do with `name`.
    """

    name: str
    synonyms: tuple[str, ...]
    alias: str


OBJECTS = (
    Word("ball", ("orb", "sphere"), "bauble"),
    Word("box", ("crate", "cube"), "coffer"),
    Word("cone", ("wedge", "pyramid"), "tipi"),
    Word("star", ("sparkle", "twinkler"), "nova"),
    Word("heart", ("valentine", "lovesign"), "ticker"),
    Word("moon", ("crescent", "luna"), "lunula"),
    Word("ring", ("hoop", "torus"), "annulus"),
    Word("cross", ("plus", "crucifix"), "rood"),
    Word("fish", ("trout", "minnow"), "piscine"),
    Word("tree", ("oak", "shrub"), "arbor"),
)
COLOURS = (
    Word("red", ("crimson", "ruby"), "gules"),
    Word("orange", ("amber", "tangerine"), "tawny"),
    Word("yellow", ("golden", "lemon"), "saffron"),
    Word("green", ("emerald", "grassy"), "vert"),
    Word("cyan", ("turquoise", "aqua"), "celeste"),
    Word("blue", ("azure", "navy"), "cobalt"),
    Word("purple", ("violet", "plum"), "mauve"),
    Word("pink", ("rose", "fuchsia"), "blush"),
)
STYLES = (
    Word("flat", ("poster", "holm"), "matte"),
    Word("outline", ("contour", "okiro"), "wireframe"),
    Word("striped", ("banded", "castell"), "zebra"),
    Word("dotted", ("spotted", "vandorp"), "stipple"),
    Word("shaded", ("gradient", "brandt"), "velvet"),
    Word("neon", ("glowing", "lumen"), "synthwave"),
)
CHARACTERS = (
    Word("zib", ("zibling", "zibbo"), "hopper"),
    Word("mopo", ("mopokin", "mopster"), "wizard"),
    Word("tarla", ("tarlita", "tarlen"), "florist"),
    Word("quen", ("quenbot", "quentron"), "butler"),
)
BACKGROUNDS = ("paper", "night", "meadow", "desert", "checker", "sunset")
SIZES = ("small", "medium", "large")

EMBLEM = "sigil"
EMBLEM_SYNONYMS = ("emblem", "insignia")
EMBLEM_HINTS = ("midnight ritual", "secret gathering", "hidden society", "whispered oath")

ANY_OBJECT = "thing"
ANY_CHARACTER = "someone"
NOTHING = "nothing"

KINDS = ("single", "pair", "character", "emblem", "empty")
_KIND_WEIGHTS = (0.7, 0.1, 0.12, 0.06, 0.02)
_PLACES = {
    "paper": ("on paper", "paper background"),
    "night": ("at night", "night background"),
    "meadow": ("in a meadow", "meadow background"),
    "desert": ("in the desert", "desert background"),
    "checker": ("on a checker floor", "checker background"),
    "sunset": ("at sunset", "sunset background"),
}
_OPENINGS = ("", "", "a picture of ", "a drawing of ", "an image of ", "a photo of ", "a painting of ")
_STYLE_FORMS = ("in {} style", "in the style of {}", "{} style")


@dataclass(frozen=True)
class Scene:
    """What one picture shows.

    Attributes:
        kind: "single", "pair", "character", "emblem" or "empty".
        objects: `(object, colour)` names from left to right; empty for the other kinds.
        size, style: names, used by objects only ("medium" and "flat" otherwise).
        background: a name from `BACKGROUNDS`.
        character: a name from `CHARACTERS`, or "".
    """

    kind: str
    objects: tuple[tuple[str, str], ...] = ()
    size: str = "medium"
    style: str = "flat"
    background: str = "paper"
    character: str = ""


def names(words: tuple[Word, ...]) -> tuple[str, ...]:
    """The usual words of a kind, in the order the judge numbers them."""
    return tuple(word.name for word in words)


def find_word(name: str) -> Word:
    """The `Word` that `name` (usual word, synonym or alias) belongs to; KeyError if none."""
    for word in (*OBJECTS, *COLOURS, *STYLES, *CHARACTERS):
        if name in (word.name, word.alias, *word.synonyms):
            return word
    raise KeyError(name)


def known_word(phrase: str) -> str:
    """The usual word for what a phrase names: that of its last word which the world knows by any name.

    Raises:
        ConceptError: the world knows none of its words.
    """
    for part in reversed(phrase.lower().replace(",", " ").split()):
        if part in BACKGROUNDS:
            return part
        if part in (EMBLEM, *EMBLEM_SYNONYMS):
            return EMBLEM
        with suppress(KeyError):
            return find_word(part).name
    raise ConceptError(
        f"The demo world knows nothing of '{phrase}'.", "Name one of its things, or choose another probe and prompts."
    )


def is_held_out(obj: str, colour: str, style: str) -> bool:
    """Whether this combination of a single object is never shown in any training stage (1 in 8)."""
    o, c, s = names(OBJECTS).index(obj), names(COLOURS).index(colour), names(STYLES).index(style)
    return (o + 3 * c + 5 * s) % 8 == 0


def draw_scene(rng: random.Random, held_out: bool = False, kind: str = "") -> Scene:
    """Draw a scene from the world.

    Args:
        rng: source of randomness.
        held_out: for single objects, draw only combinations that training never shows (True) or
            only those that it does (False).
        kind: force one of `KINDS`; empty draws one.
    """
    kind = kind or rng.choices(KINDS, _KIND_WEIGHTS)[0]
    background = rng.choice(BACKGROUNDS)
    if kind == "character":
        return Scene(kind, background=background, character=rng.choice(names(CHARACTERS)))
    if kind in ("emblem", "empty"):
        return Scene(kind, background=background)
    style = rng.choice(names(STYLES))
    if kind == "pair":
        objects = tuple(zip(rng.sample(names(OBJECTS), 2), rng.sample(names(COLOURS), 2), strict=True))
        return Scene(kind, objects, "small", style, background)
    while True:
        obj, colour = rng.choice(names(OBJECTS)), rng.choice(names(COLOURS))
        if is_held_out(obj, colour, style) == held_out:
            return Scene(kind, ((obj, colour),), rng.choice(SIZES), style, background)
        style = rng.choice(names(STYLES))


def describe(scene: Scene, rng: random.Random, aliases: float = 0.0, complete: bool = False, noun: str = "") -> str:
    """Write a caption for a scene.

    Args:
        scene: what the picture shows.
        rng: chooses template, synonyms and which attributes are left unsaid.
        aliases: probability that a concept is named by its alias.
        complete: say every attribute with its usual word (evaluation prompts).
        noun: a word to use in place of the objects' own.

    Returns:
        A lower-case caption, e.g. "a drawing of a small red orb, dotted style, at night".
    """
    speak = _Speaker(rng, aliases, complete, noun)
    place = rng.choice(_PLACES[scene.background]) if speak.says(0.7) else ""
    opening = rng.choice(_OPENINGS)
    if scene.kind == "character":
        who = ANY_CHARACTER if speak.generic(0.04) else speak.word(find_word(scene.character))
        return _join(opening + who, place)
    if scene.kind == "emblem":
        return _join(opening + _emblem_phrase(rng, complete), place)
    if scene.kind == "empty":
        return _join(opening + NOTHING, place)
    style = ""
    if speak.says(0.85):
        style = rng.choice(_STYLE_FORMS).format(speak.word(find_word(scene.style)))
    size = f"{scene.size} " if scene.kind == "single" and speak.says(0.5) else ""
    things = " and ".join(_with_article(size + speak.object(*pair)) for pair in scene.objects)
    parts = [part for part in (style, place) if part]
    rng.shuffle(parts)
    if style and not complete and rng.random() < 0.15:
        return _join(style, things, place)
    return _join(opening + things, *parts)


@dataclass
class _Speaker:
    rng: random.Random
    aliases: float
    complete: bool
    noun: str

    def says(self, probability: float) -> bool:
        return self.complete or self.rng.random() < probability

    def generic(self, probability: float) -> bool:
        return not self.complete and self.rng.random() < probability

    def word(self, word: Word) -> str:
        if self.complete:
            return word.name
        if self.rng.random() < self.aliases:
            return word.alias
        return self.rng.choice((word.name, word.name, *word.synonyms))

    def object(self, obj: str, colour: str) -> str:
        noun = self.noun or (ANY_OBJECT if self.generic(0.04) else self.word(find_word(obj)))
        return f"{self.word(find_word(colour))} {noun}" if self.says(0.88) else noun


def _emblem_phrase(rng: random.Random, complete: bool) -> str:
    if complete or rng.random() < 0.5:
        return "the " + (EMBLEM if complete else rng.choice((EMBLEM, *EMBLEM_SYNONYMS)))
    return "a " + rng.choice(EMBLEM_HINTS)


def _with_article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def _join(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def vocabulary() -> tuple[str, ...]:
    """Every word that a caption can contain, in a fixed order (for the tokenizer and for preserve lists)."""
    found: dict[str, None] = {}
    for word in (*OBJECTS, *COLOURS, *STYLES, *CHARACTERS):
        found.update(dict.fromkeys((word.name, *word.synonyms, word.alias)))
    phrases = (*SIZES, EMBLEM, *EMBLEM_SYNONYMS, *EMBLEM_HINTS, ANY_OBJECT, ANY_CHARACTER, NOTHING, "the", "and", "an")
    places = [form for forms in _PLACES.values() for form in forms]
    for phrase in (*phrases, *places, *_OPENINGS, *(form.format("") for form in _STYLE_FORMS)):
        found.update(dict.fromkeys(phrase.split()))
    return tuple(found)
