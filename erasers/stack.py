"""Several erasers with a strength each, in the order they were put together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from .algebra.edits import scaled_parts
from .concepts import Concept, ConceptList
from .errors import FamilyError, SettingError
from .provenance import versions
from .result import Eraser, Recipe
from .spec import Value


@dataclass(frozen=True)
class Stacked:
    """An eraser in a stack, and how much of it acts: 1 as it was made."""

    eraser: Eraser
    strength: float = 1.0

    @property
    def title(self) -> str:
        """Its concepts and its method, for people."""
        names = ", ".join(str(concept["text"]) for concept in self.eraser.recipe.concepts) or "no concept named"
        return f"{names} ({self.eraser.recipe.method})"

    def scaled(self) -> Eraser:
        """The eraser at its strength, without what training left in it."""
        parts = scaled_parts(self.eraser, self.strength)
        return Eraser(self.eraser.recipe, **parts)


@dataclass(frozen=True)
class Stack:
    """Erasers of one family, the first at the bottom.

    Raises:
        FamilyError: they are for different families.
    """

    entries: tuple[Stacked, ...] = ()

    def __post_init__(self) -> None:
        families = sorted({entry.eraser.recipe.family for entry in self.entries})
        if len(families) > 1:
            raise FamilyError(
                f"This stack would hold erasers for different families: {', '.join(families)}.",
                "Stack erasers of one family.",
            )

    def with_erasers(self, erasers: Iterable[Eraser], strength: float) -> Stack:
        """This stack with more erasers on top."""
        return Stack((*self.entries, *(Stacked(eraser, strength) for eraser in erasers)))

    def active(self) -> list[Eraser]:
        """The erasers at their strengths, those of strength 0 left out.

        Raises:
            SettingError: none is left, or one is of gated parts, which are merged as they are already.
        """
        if any(entry.eraser.members for entry in self.entries):
            raise SettingError(
                "This stack holds an eraser of gated parts, which is a merged one already.",
                "Stack the erasers it was made of, or apply it by itself.",
            )
        found = [entry.scaled() for entry in self.entries if entry.strength != 0]
        if not found:
            raise SettingError("There is nothing to merge.", "Put an eraser of a strength other than 0 on the stack.")
        return found

    def concepts(self) -> ConceptList:
        """What the erasers erase, each name once, and what they all preserve."""
        return _concepts(entry.eraser for entry in self.entries)

    def recipe(self, mode: str, settings: Mapping[str, Value]) -> Recipe:
        """How an eraser that is merged from this stack was made."""
        first = self.entries[0].eraser.recipe
        encoders = {entry.eraser.recipe.encoder for entry in self.entries}
        parts = "; ".join(f"{entry.title} x {entry.strength:g}" for entry in self.entries)
        return Recipe(
            method=f"merged: {mode}",
            settings={**settings, "stack": parts},
            concepts=tuple(concept for entry in self.entries for concept in entry.eraser.recipe.concepts),
            preserve=self.concepts().preserve,
            family=first.family,
            encoder=first.encoder if len(encoders) == 1 else "several",
            seed=int(settings.get("seed", 0)),
            versions=versions(),
        )


def _concepts(erasers: Iterable[Eraser]) -> ConceptList:
    found, preserve, seen = ConceptList(), dict[str, None](), set[str]()
    for eraser in erasers:
        preserve |= dict.fromkeys(eraser.recipe.preserve)
        for entry in eraser.recipe.concepts:
            text, names = str(entry["text"]), entry.get("synonyms", ())
            more = tuple(str(name) for name in names) if isinstance(names, list | tuple) else ()
            if text.lower() in seen:
                continue
            synonyms = tuple(name for name in more if name.lower() not in seen)
            seen |= {text.lower(), *(name.lower() for name in synonyms)}
            found = replace(found, erase=(*found.erase, Concept(text, str(entry.get("replacement", "")), synonyms)))
    kept = tuple(prompt for prompt in preserve if prompt.lower() not in seen)
    return found.with_preserved(kept)
