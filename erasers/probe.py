"""What looks at pictures: whether a concept is seen, whether the rest is right, how far a picture has moved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from .concepts import ConceptList
from .prompts import PromptRow
from .sight import Sight
from .spec import MethodSpec, Value

CONCEPT, SUBJECT = "concept", "subject"
"""What a recogniser answers: whether a row's erased concept is seen, and whether its subject is."""


@dataclass(frozen=True)
class View:
    """Pictures with the rows they were drawn from.

    Attributes:
        rows: n rows.
        pictures: `[n, 3, h, w]` float32 in 0..1.
        before: the untouched model's pictures of the same rows and seeds; `pictures` itself for those.
        concepts: what is erased.
        subjects: every subject of the evaluation by the kind of its rows.
        sight: sees pictures and texts in one space; None where no image encoder is at hand.
    """

    rows: tuple[PromptRow, ...]
    pictures: Tensor
    before: Tensor
    concepts: ConceptList
    subjects: Mapping[str, tuple[str, ...]]
    sight: Sight | None = None


class Probe(Protocol):
    """One measure of pictures.

    Attributes:
        spec: its name, settings and source.
        recognises: whether it answers `CONCEPT` and `SUBJECT`; one recogniser judges an evaluation.
    """

    spec: MethodSpec
    recognises: bool

    def lacks(self, view: View) -> str:
        """What it needs and `view` has not, as a sentence; "" where nothing is missing."""
        ...

    def look(self, view: View, settings: Mapping[str, Value]) -> Mapping[str, Tensor]:
        """`[n]` values by column; bool for what is seen or not."""
        ...
