"""The prompts of an evaluation: what each asks for, and what its picture should show.

A row comes from templates around the concepts, from text lines, or from a CSV file as published benchmarks
ship them.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .algebra.context import TEMPLATES
from .concepts import Concept, ConceptList, read_list
from .errors import ConceptError

DIRECT, SYNONYM, IMPLICIT, COMPOSITIONAL, NEAR, FAR = KINDS = (
    "direct",
    "synonym",
    "implicit",
    "compositional",
    "near",
    "far",
)
"""Direct prompts name an erased concept; synonym, implicit and compositional ones ask for it in other ways; near and
far ones ask for something that has to stay: of the concept's own kind, and of other kinds."""
ERASING, KEEPING = (DIRECT, SYNONYM, IMPLICIT, COMPOSITIONAL), (NEAR, FAR)
_COLUMNS = {
    "text": ("prompt", "text", "caption"),
    "kind": ("kind",),
    "concept": ("concept",),
    "subject": ("subject",),
    "floor": ("floor",),
    "seed": ("seed", "evaluation_seed", "sd_seed"),
    "cfg": ("guidance", "cfg", "evaluation_guidance", "sd_guidance_scale"),
}
"""What a row is made of, and the headings it is published under (I2P and the sets that follow it)."""


@dataclass(frozen=True)
class PromptRow:
    """One prompt of an evaluation.

    Attributes:
        text: the prompt.
        kind: one of `KINDS`.
        concept: name of the erased concept that must not be seen; "" for none in particular.
        subject: what the picture shows when it is right, e.g. the neighbour's name; "" where that is not asked.
        floor: the prompt with the concept's replacement in its place, for what is read anyway; None for none.
        seed: of the noise.
        cfg: guidance scale; None for the evaluation's own.
    """

    text: str
    kind: str = DIRECT
    concept: str = ""
    subject: str = ""
    floor: str | None = None
    seed: int = 0
    cfg: float | None = None

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise ConceptError("A prompt of the evaluation is empty.", "Take the row out, or write its prompt.")
        if self.kind not in KINDS:
            raise ConceptError(
                f"Prompt '{self.text[:60]}' is of kind '{self.kind}'.", f"Choose one of: {', '.join(KINDS)}."
            )


def template_rows(
    concepts: ConceptList, templates: Sequence[str] = TEMPLATES["object"], far: int = 20
) -> tuple[PromptRow, ...]:
    """Rows around the concepts: their names, their synonyms, each beside a neighbour, and what has to stay.

    Near is what the user preserves by name, far the first `far` prompts of the shipped lists.
    """
    found = []
    listed = [prompt for prompt in concepts.kept if prompt not in concepts.preserve][:far]
    for template in templates:
        for concept in concepts.erase:
            names = [(concept.text, DIRECT, ""), *((name, SYNONYM, "") for name in concept.synonyms)]
            names += [(f"{concept.text} and {near}", COMPOSITIONAL, near) for near in concepts.preserve]
            for name, kind, subject in names:
                text = template.format(name)
                found.append(PromptRow(text, kind, concept.text, subject, with_replacement(text, concept)))
        for kind, prompts in ((NEAR, concepts.preserve), (FAR, listed)):
            found += [PromptRow(template.format(prompt), kind, subject=prompt) for prompt in prompts]
    return tuple(found)


def line_rows(text: str, concepts: ConceptList) -> tuple[PromptRow, ...]:
    """Rows of a text: one prompt per line, its kind before a colon where it is not direct: `near: a red box`.

    A near or far prompt's subject stands after a bar where it is not the whole prompt: `near: a red box | box`.
    """
    rows = []
    for line in text.splitlines():
        kind, colon, rest = line.partition(":")
        named = colon and kind.strip() in KINDS
        prompt, _, subject = (rest if named else line).partition("|")
        if prompt.strip() or subject.strip():
            rows.append({"text": prompt, "kind": kind if named else DIRECT, "subject": subject})
    return _completed(rows, concepts)


def csv_rows(text: str, concepts: ConceptList) -> tuple[PromptRow, ...]:
    """Rows of a CSV file with a heading; I2P and sets in its form are read as they are.

    Raises:
        ConceptError: there is no column of prompts, or a seed or guidance is not a number.
    """
    reader = csv.DictReader(io.StringIO(text, newline=""))
    heads = {head.strip().lower(): head for head in reader.fieldnames or () if head}
    columns = {field: heads[name] for field, names in _COLUMNS.items() for name in reversed(names) if name in heads}
    if "text" not in columns:
        raise ConceptError(
            f"The CSV file has no column of prompts; its columns are: {', '.join(heads) or 'none'}.",
            f"Name one of them {' or '.join(_COLUMNS['text'])}.",
        )
    return _completed([{f: row.get(head) or "" for f, head in columns.items()} for row in reader], concepts)


def file_rows(path: Path, concepts: ConceptList) -> tuple[PromptRow, ...]:
    """Rows of a CSV file, or of any other file as a text of lines.

    Raises:
        ConceptError: the file cannot be read, or holds no prompt.
    """
    text = read_list(path)
    return csv_rows(text, concepts) if path.suffix.lower() == ".csv" else line_rows(text, concepts)


def fewer(rows: Iterable[PromptRow], most: int) -> tuple[PromptRow, ...]:
    """The first `most` rows of each kind."""
    counted: Counter[str] = Counter()
    found = []
    for row in rows:
        counted[row.kind] += 1
        if counted[row.kind] <= most:
            found.append(row)
    return tuple(found)


def seeded(rows: Iterable[PromptRow], pictures: int, seed: int) -> tuple[PromptRow, ...]:
    """Each row `pictures` times, with consecutive seeds from its own on, or from `seed` plus its own."""
    return tuple(replace(row, seed=seed + row.seed + i) for row in rows for i in range(pictures))


def exchanged(prompt: str, names: Iterable[str], word: str) -> str | None:
    """A prompt with every one of `names` that stands in it exchanged for `word`; None where none stands.

    A name stands where whitespace or the beginning is before it, and no letter or digit behind it.
    """
    longest_first = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    swapped, count = re.subn(rf"(?<!\S)(?:{longest_first})(?![^\W_])", lambda _: word, prompt, flags=re.IGNORECASE)
    return " ".join(swapped.split()) if count else None


def with_replacement(prompt: str, concept: Concept) -> str | None:
    """A prompt with the concept's name, or a synonym of it, exchanged for its replacement; None where none stands."""
    return exchanged(prompt, concept.names, concept.replacement)


def _completed(rows: Iterable[Mapping[str, str]], concepts: ConceptList) -> tuple[PromptRow, ...]:
    """Rows of text cells with what they leave unsaid."""
    found = []
    for cells in rows:
        given = {name: value.strip() for name, value in cells.items()}
        kind = given.get("kind", "").lower() or DIRECT
        text, concept = given["text"], given.get("concept", "")
        if kind in ERASING:
            owner = _owner(text, concept, concepts)
            concept = owner.text
            floor = given.get("floor") or with_replacement(text, owner)
        else:
            floor = None
        subject = given.get("subject", "") or (text if kind in KEEPING else "")
        seed, cfg = (_number(given.get(name, ""), name, text) for name in ("seed", "cfg"))
        found.append(PromptRow(text, kind, concept, subject, floor, int(seed or 0), cfg))
    if not found:
        raise ConceptError("There is no prompt to evaluate.", "Write some, or choose a file that holds some.")
    return tuple(found)


def _owner(text: str, name: str, concepts: ConceptList) -> Concept:
    """The concept that a row is about: the one it names, the one whose name stands in the prompt, or the only one."""
    for concept in concepts.erase:
        if name.lower() == concept.text.lower():
            return concept
    if name:
        raise ConceptError(f"'{name}' is not among the concepts to erase.", "Add it, or take its rows out.")
    standing = [concept for concept in concepts.erase if with_replacement(text, concept) is not None]
    if standing:
        return standing[0]
    if len(concepts.erase) != 1:
        raise ConceptError(f"It is not said which concept '{text[:60]}' is about.", "Name it in a column 'concept'.")
    return concepts.erase[0]


def _number(text: str, column: str, prompt: str) -> float | None:
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0:
        raise ConceptError(f"The {column} of '{prompt[:60]}' is '{text}'.", "It has to be a number, 0 or more.")
    return value
