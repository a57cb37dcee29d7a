"""Zero-shot recognition: the label whose text lies nearest to the picture, by an image encoder.

A picture is compared with a few labels, p = softmax(100 cos(picture, label)); 100 is CLIP's trained logit scale.

    concept seen:   argmax over the row's concept's names, its replacement and the near subjects is one of its names
    subject seen:   argmax over the subjects of the row's kind and the erased concepts' names is the subject
    probability:    p of the concept's names together, over the labels of "concept seen"

Where a prompt asks for a concept and a subject at once, labels do too ("ball and star"), and the other one alone
says no: plain labels would compete within one picture. On 24 such pictures of the demo world after UCE (ball to box,
12 steps), plain labels found the ball in none and the world's own judge in 12; these find it in 10.

MACE's script of CLIP accuracy reports the mean of such a probability, not of the argmax, over ten class names; ours
is over the row's own labels, so the two compare only where the labels are the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..concepts import Concept
from ..errors import ConceptError
from ..measure.embedded import NO_SIGHT, directions_of_pictures, directions_of_texts, sight_of
from ..probe import CONCEPT, SUBJECT, View
from ..prompts import NEAR, PromptRow
from ..spec import MethodSpec, Parameter, Value

PROBABILITY = "probability"
_SCALE = 100.0


@dataclass(frozen=True)
class _Question:
    """Labels that say yes and labels that say no."""

    right: tuple[str, ...]
    wrong: tuple[str, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """All of them, those that say yes first."""
        return (*self.right, *self.wrong)


class ClipZeroShot:
    """Recognises whatever the image encoder has words for."""

    spec = MethodSpec(
        name="clip_zero_shot",
        title="CLIP zero-shot",
        paper="Radford et al., Learning Transferable Visual Models From Natural Language Supervision, ICML 2021",
        summary="Says which of a few labels an image encoder finds nearest to a picture.",
        families=("demo",),
        parameters=(
            Parameter(
                "template",
                "a photo of {}",
                "What each label is written into: {} for labels that are whole phrases, 'a photo of {}' for things "
                "and people, 'a painting in the style of {}' for artists. Start with 'a photo of {}'.",
                choices=("{}", "a photo of {}", "a painting in the style of {}"),
            ),
        ),
    )
    recognises = True

    def lacks(self, view: View) -> str:
        return "" if view.sight is not None else NO_SIGHT

    def look(self, view: View, settings: Mapping[str, Value]) -> dict[str, Tensor]:
        """Whether concept and subject are seen; probability is nan in rows without a concept.

        Raises:
            ConceptError: there is no label but the right one, or a row's concept is not among the erased.
            NumericsError: embeddings are not finite.
            SettingError: the view has no image encoder.
        """
        sight = sight_of(view)
        asked = {
            CONCEPT: [_concept_question(row, view) for row in view.rows],
            SUBJECT: [_subject_question(row, view) for row in view.rows],
        }
        labels = dict.fromkeys(label for rows in asked.values() for one in rows if one for label in one.labels)
        pictures = directions_of_pictures(sight, view.pictures)
        if not labels:
            nothing = torch.zeros(len(view.rows), dtype=torch.bool)
            return {CONCEPT: nothing, SUBJECT: nothing.clone(), PROBABILITY: torch.full((len(view.rows),), math.nan)}
        texts = [str(settings["template"]).format(label) for label in labels]
        logits = _SCALE * pictures @ directions_of_texts(sight, texts).T
        column = {label: place for place, label in enumerate(labels)}

        def answers(name: str) -> list[tuple[bool, float]]:
            return [_answer(row, one, column) for row, one in zip(logits, asked[name], strict=True)]

        concept, subject = answers(CONCEPT), answers(SUBJECT)
        return {
            CONCEPT: torch.tensor([seen for seen, _ in concept]),
            SUBJECT: torch.tensor([seen for seen, _ in subject]),
            PROBABILITY: torch.tensor([share for _, share in concept]),
        }


def _answer(logits: Tensor, question: _Question | None, column: Mapping[str, int]) -> tuple[bool, float]:
    """Whether the nearest label is a right one, and the probability of the right ones together."""
    if question is None:
        return False, math.nan
    shares = logits[[column[label] for label in question.labels]].softmax(0)
    count = len(question.right)
    return int(shares.argmax()) < count, float(shares[:count].sum())


def _concept_question(row: PromptRow, view: View) -> _Question | None:
    if not row.concept:
        return None
    concept = _concept_of(row, view)
    others = ([concept.replacement] if concept.replacement else []) + list(view.subjects.get(NEAR, ()))
    advice = "Give it a replacement, or preserve neighbours."
    return _question(concept.names, others, row.subject, f"concept '{concept.text}'", advice)


def _subject_question(row: PromptRow, view: View) -> _Question | None:
    if not row.subject:
        return None
    erased = [concept for concept in view.concepts.erase if _key(concept.text) != _key(row.concept)]
    others = [*view.subjects.get(row.kind, ()), *(name for concept in erased for name in concept.names)]
    return _question((row.subject,), others, row.concept, f"subject '{row.subject}'", f"Add other {row.kind} subjects.")


def _question(right: tuple[str, ...], others: list[str], beside: str, what: str, advice: str) -> _Question:
    """Labels of what is asked for and of others; each with what the prompt asks for `beside`, which alone says no."""
    known = {_key(label) for label in (*right, beside)}
    wrong = tuple({_key(label): label for label in others if _key(label) not in known}.values())
    if beside:
        right, wrong = (tuple(f"{label} and {beside}" for label in labels) for labels in (right, wrong))
        wrong = (*wrong, beside)
    if not wrong:
        raise ConceptError(f"There is nothing that {what} could be taken for.", advice)
    return _Question(right, wrong)


def _concept_of(row: PromptRow, view: View) -> Concept:
    for concept in view.concepts.erase:
        if _key(concept.text) == _key(row.concept):
            return concept
    raise ConceptError(f"'{row.concept}' is not among the concepts to erase.", "Add it, or take its rows out.")


def _key(text: str) -> str:
    return " ".join(text.lower().split())


PROBE = ClipZeroShot()
