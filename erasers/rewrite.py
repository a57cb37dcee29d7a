"""Prompts rewritten on their tokens until they no longer ask for a concept.

A prompt asks for a concept where one of its names stands in it, or where its features are as like the concept as the
gate's threshold (gates/discriminant.py). Names give way to the replacement. What still asks for it then loses, one by
one, the tokens whose absence makes it least like the concept, and has the replacement in place of the first. What
nothing helps becomes the replacement alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .errors import ConceptError
from .gates.discriminant import Discriminant, fit_gate
from .model import TextTower, Token
from .phrases import places_of, stands
from .task import Task

_ROUNDS = 4


@dataclass(frozen=True, eq=False)
class Entry:
    """A name and what stands in its place, as token ids."""

    name: list[int]
    replacement: list[int]


@dataclass(frozen=True, eq=False)
class Wordbook:
    """What prompts may not ask for, and what they say instead.

    Attributes:
        tower: the text encoders.
        gate: tells whether features ask for a concept.
        entries: one for each of the gate's names, in their order.
    """

    tower: TextTower
    gate: Discriminant
    entries: tuple[Entry, ...]

    def likenesses(self, contents: Sequence[Sequence[Token]]) -> list[float]:
        """How like a concept each of some prompts is, given by their tokens without start, end and padding."""
        return [self.gate.likeness(states) for states in self.tower.states(contents)]

    def asking(self, contents: Sequence[Sequence[Token]]) -> list[bool]:
        """Which of some prompts ask for a concept; the empty one never does."""
        pairs = zip(contents, self.likenesses(contents), strict=True)
        return [bool(own) and (self._names(own) or likeness >= self.gate.threshold) for own, likeness in pairs]

    def rewrite(self, content: Sequence[Token]) -> list[Token]:
        """A prompt that says the replacement instead; one that does not ask for a concept stays as it is."""
        found, named = self._exchange(content)
        for round_ in range(_ROUNDS):
            if not self._is_like(found):
                return found
            instead = [] if named or round_ else self._nearest(found).replacement
            likenesses = self.likenesses([[*found[:i], *found[i + 1 :]] for i in range(len(found))])
            place = likenesses.index(min(likenesses))
            found[place : place + 1] = instead
        return list(self._nearest(content).replacement) if self._is_like(found) else found

    def _names(self, content: Sequence[Token]) -> bool:
        return any(places_of(content, entry.name) for entry in self.entries)

    def _is_like(self, content: Sequence[Token]) -> bool:
        return bool(content) and self.likenesses([content])[0] >= self.gate.threshold

    def _nearest(self, content: Sequence[Token]) -> Entry:
        return self.entries[self.gate.nearest(next(self.tower.states([content])))]

    def _exchange(self, content: Sequence[Token]) -> tuple[list[Token], bool]:
        """A prompt with replacements for names, where several begin for the longest; and whether there was any."""
        found, place, named = list[Token](), 0, False
        while place < len(content):
            here = [entry for entry in self.entries if stands(content, entry.name, place)]
            entry = max(here, key=lambda e: len(e.name), default=Entry([0], []))
            found += entry.replacement if here else [content[place]]
            place, named = place + len(entry.name), named or bool(here)
        return found, named


def wordbook(task: Task, threshold: float) -> Wordbook:
    """The concepts' names and replacements, and a gate for them.

    Raises:
        ConceptError: there is no concept, or the text encoder reads nothing in a name.
    """
    gate, tower, entries = fit_gate(task, threshold), task.tower(), []
    for concept in task.concepts.erase:
        replacement = tower.content(concept.replacement) if concept.replacement else []
        for name in concept.names:
            entries.append(Entry(tower.content(name), replacement))
            if not entries[-1].name:
                raise ConceptError(f"The text encoder reads nothing in '{name}'.", "Write words of its language.")
    return Wordbook(tower, gate, tuple(entries))
