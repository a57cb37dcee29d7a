"""From pairs of prompts to context operators: the steps that every shared-map method has in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from ..concepts import Concept
from ..errors import ConceptError, FamilyError
from ..result import ContextOperator
from ..sites import Family
from ..task import EncodedPrompt, Task
from .closed_form import RidgeSystem
from .held import Held, hold
from .tokens import ALL, LAST, select_pair

RELATIVE, ABSOLUTE = "relative", "absolute"
TEMPLATES = {
    "none": ("{}",),
    "object": ("{}", "image of {}", "photo of {}", "portrait of {}", "picture of {}", "painting of {}"),
    "style": ("{}", "painting by {}", "art by {}", "artwork by {}", "picture by {}", "style of {}"),
    "attribute": ("{}", "{} style", "in {} style", "a {} thing", "a picture of a {} thing"),
    "scenes": (
        *("{}", "a photo of a {}", "a small red {}", "a large green {} at night", "a drawing of a blue {}"),
        *("a yellow {} in a meadow", "a {} in the desert", "a picture of a {} at sunset", "a small purple {} on paper"),
        *("a painting of a large pink {}", "an orange {} in a meadow", "an image of a cyan {} at night"),
    ),
    "styled scenes": (
        *("{}", "a photo of a tree, {}", "a small red box, {}", "a large green fish at night, {}", "a blue moon, {}"),
        *("a yellow cone in a meadow, {}", "a house in the desert, {}", "a picture of a heart at sunset, {}"),
        *("a small purple star on paper, {}", "a painting of a large pink ring, {}", "an orange tree, {}"),
        "an image of a cyan cross at night, {}",
    ),
}
"""Sentences by kind. The last two are for training: a model that saw the bare name may learn only that prompt."""


@dataclass(frozen=True)
class Pair:
    """A prompt to erase, the prompt it shall mean instead, and the weight of its rows."""

    source: EncodedPrompt
    target: EncodedPrompt
    weight: float = 1.0


@dataclass(frozen=True)
class Ridge:
    """The ridge: `lam` as it is, or times the mean squared length of the erased rows."""

    lam: float
    scale: str = RELATIVE

    def of(self, system: RidgeSystem) -> float:
        """Its absolute value for a system."""
        return self.lam * (system.mean_square if self.scale == RELATIVE else 1.0)


Select = Callable[[EncodedPrompt, EncodedPrompt], tuple[Tensor, Tensor]]


def concept_pairs(task: Task, frames: tuple[str, ...]) -> Iterable[Pair]:
    """Every name of every concept in every frame, beside its replacement; a name counts once in all frames.

    Raises:
        ConceptError: there is nothing to erase.
    """
    if not task.concepts.erase:
        raise ConceptError("There is no concept to erase.", "Connect a 'Concept to Erase' node.")
    for concept in task.concepts.erase:
        yield from _pairs_of(task, concept, frames)


def _pairs_of(task: Task, concept: Concept, frames: tuple[str, ...]) -> Iterable[Pair]:
    targets = task.encode([frame.format(concept.replacement) if concept.replacement else "" for frame in frames])
    for name in concept.names:
        sources = task.encode([frame.format(name) for frame in frames])
        for source, target in zip(sources, targets, strict=True):
            yield Pair(source, target, concept.weight / len(frames))


def fit_context(
    task: Task,
    pairs: Iterable[Pair],
    select: Select | str,
    ridge: Ridge,
    preserve_scale: float,
    erase_scale: float = 1.0,
) -> dict[str, ContextOperator]:
    """The ridge edit over prompt pairs, one operator per stream.

    Args:
        pairs: may be a generator; rows are folded into Gram matrices as they come.
        select: a token rule, or a function from a pair's prompts to rows `[n, d]` and their targets.
        preserve_scale: weight of every preserved row; 0 for `balance`.

    Raises:
        FamilyError: the task asks for pooled features and the family has none.
        NumericsError: features are not finite, or a system is singular.
    """
    choose = partial(select_pair, select) if isinstance(select, str) else select
    held = hold(task, LAST if select == LAST else ALL)
    scale = preserve_scale or balance(task, held)
    tokens = RidgeSystem(task.family.width, held.tokens, scale)
    pooled = pooled_system(task, held, scale)
    for pair in pairs:
        tokens.erase(*choose(pair.source, pair.target), pair.weight * erase_scale)
        if pooled is not None and pair.source.pooled is not None and pair.target.pooled is not None:
            pooled.erase(pair.source.pooled[None], pair.target.pooled[None], pair.weight * erase_scale)
    found = {task.family.stream: tokens.solve(ridge.of(tokens))}
    if pooled is not None:
        found[task.family.pooled_stream] = pooled.solve(ridge.of(pooled))
    return found


def balance(task: Task, held: Held) -> float:
    """The weight of a preserved prompt at which all of them together weigh as much as all erased names."""
    return sum(len(concept.names) for concept in task.concepts.erase) / len(held.prompts)


def pooled_system(task: Task, held: Held, scale: float) -> RidgeSystem | None:
    """An empty system for the pooled features, if the task asks for them; FamilyError if there are none."""
    if not task.pooled:
        return None
    if held.pooled is None or not task.family.pooled_stream:
        raise no_pooled(task.family)
    return RidgeSystem(task.family.pooled_width, held.pooled, scale)


def no_pooled(family: Family) -> FamilyError:
    """What to raise when a task asks for pooled features that a family does not have."""
    return FamilyError(
        f"{family.title} has no pooled text features to edit.", "Switch the editing of pooled features off."
    )
