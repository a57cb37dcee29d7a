"""What to erase, what to put in its place and what to keep, as the user says it."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from .errors import ConceptError

_LISTS = Path(__file__).parent / "lists"


@dataclass(frozen=True)
class Concept:
    """One concept to erase.

    Attributes:
        text: its name as it stands in prompts.
        replacement: what its prompts shall mean instead; "" is the unconditional prompt.
        synonyms: other names that go the same way.
        weight: importance against the other concepts; 1 as published.
    """

    text: str
    replacement: str = ""
    synonyms: tuple[str, ...] = ()
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise ConceptError("A concept to erase is empty.", "Write its name, e.g. 'Van Gogh'.")
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise ConceptError(
                f"Concept '{self.text}' has weight {self.weight!r}.", "It has to be a positive finite number."
            )
        if _same(self.text, self.replacement):
            raise ConceptError(f"Concept '{self.text}' would be replaced by itself.", "Choose another replacement.")

    @property
    def names(self) -> tuple[str, ...]:
        """The text and its synonyms."""
        return (self.text, *self.synonyms)


@dataclass(frozen=True)
class ConceptList:
    """Concepts to erase and prompts to preserve, checked against each other.

    Attributes:
        erase: the concepts, in order.
        preserve: prompts that the user wants kept.
        lists: names of shipped lists to keep as well; whatever in them is to be erased is left out.

    Raises:
        ConceptError: something is to be erased and preserved at once, or erased twice.
    """

    erase: tuple[Concept, ...] = ()
    preserve: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        erased = [_key(name) for concept in self.erase for name in concept.names]
        both = sorted(set(erased) & {_key(prompt) for prompt in self.preserve})
        if both:
            raise ConceptError(
                f"'{both[0]}' stands in the list to erase and in the list to preserve.", "Take it out of one of them."
            )
        twice = sorted(name for name, count in Counter(erased).items() if count > 1)
        if twice:
            raise ConceptError(f"'{twice[0]}' is to be erased twice.", "Name it once.")

    @property
    def names(self) -> tuple[str, ...]:
        """Every name to erase, synonyms included."""
        return tuple(name for concept in self.erase for name in concept.names)

    @property
    def kept(self) -> tuple[str, ...]:
        """Every prompt to preserve: the user's, then those of the lists, each once."""
        erased = {_key(name) for concept in self.erase for name in concept.names}
        listed = (prompt for name in self.lists for prompt in preserve_list(name))
        return tuple(dict.fromkeys((*self.preserve, *(prompt for prompt in listed if _key(prompt) not in erased))))

    def with_concept(self, concept: Concept) -> ConceptList:
        """This list and one more concept to erase."""
        return replace(self, erase=(*self.erase, concept))

    def with_concepts(self, concepts: Iterable[Concept]) -> ConceptList:
        """This list and more concepts to erase."""
        return replace(self, erase=(*self.erase, *concepts))

    def with_preserved(self, prompts: tuple[str, ...], lists: tuple[str, ...] = ()) -> ConceptList:
        """This list and more prompts, and whole lists, to preserve."""
        return replace(
            self,
            preserve=tuple(dict.fromkeys((*self.preserve, *prompts))),
            lists=tuple(dict.fromkeys((*self.lists, *lists))),
        )


def split_lines(text: str) -> tuple[str, ...]:
    """The non-empty lines of a text, trimmed."""
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def read_concepts(text: str, replacement: str = "") -> tuple[Concept, ...]:
    """Concepts of a list: one per line, as plain text or as CSV with the replacement in the second column.

    Empty lines, lines that begin with `#` and a heading line `concept,replacement` are passed over.

    Args:
        text: the list; a field with a comma in it stands in double quotes.
        replacement: for lines that name none.

    Raises:
        ConceptError: a line has more than two columns or no concept; the message says which.
    """
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    found = []
    for number, row in enumerate(csv.reader(lines, skipinitialspace=True), 1):
        cells = [cell.strip() for cell in row]
        if number == 1 and [_key(cell) for cell in cells] in (["concept"], ["concept", "replacement"]):
            continue
        if len(cells) > 2 or not cells[0]:
            raise ConceptError(
                f"Line {number} of the concept list is '{','.join(row)[:80]}'.",
                "Write one concept per line, and its replacement after a comma if it has one; quote other commas.",
            )
        found.append(Concept(cells[0], cells[1] if len(cells) == 2 and cells[1] else replacement))
    return tuple(found)


def read_list(path: Path) -> str:
    """The text of a list that a user wrote, in UTF-8; ConceptError where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConceptError(f"'{path}' cannot be read: {error}.", "Give a text or CSV file in UTF-8.") from error


@cache
def preserve_lists() -> tuple[str, ...]:
    """Names of the lists that ship with the pack."""
    return tuple(sorted(path.stem for path in _LISTS.glob("*.txt")))


def preserve_list(name: str) -> tuple[str, ...]:
    """The prompts of a shipped list; ConceptError if there is no such list."""
    if name not in preserve_lists():
        raise ConceptError(f"There is no list '{name}'.", f"Choose one of: {', '.join(preserve_lists())}.")
    return split_lines((_LISTS / f"{name}.txt").read_text(encoding="utf-8"))


def _key(text: str) -> str:
    return " ".join(text.lower().split())


def _same(one: str, other: str) -> bool:
    return _key(one) == _key(other)
