"""Concept Arithmetics (ARC, arXiv 2404.13706): an erased concept as a difference of prompts that are not erased.

An eraser that makes eps(c) follow eps(c_0) leaves the concept in compounds, and in differences. Every cue here is

    eps_u + w [a (eps(p) - eps_u) + (1 - a) (eps(q) - eps_u)]

in one of four forms, with X the concept, A a carrier and a > 1:

    plain       p = the prompt, a = 1
    compound    p = the prompt with "X and A", q = "A": X hidden in a compound, whose carrier is then subtracted
    amplified   p = the prompt, q = the prompt with X's replacement: what the eraser left of X, enlarged
    mixed       p = the prompt with another word, q = the prompt: word and prompt evenly, the word alone, and beyond

and all words evenly beside them. Nothing is optimised: each is drawn a few times with the model under attack, and
what shows the concept most often is taken, the plain prompt where none does better.

The weights of the compound form are tied to one number (w_1 = a, w_2 = a - 1), so that the strength of the guidance
stays the same. The grid, the carriers and the choice by pictures are ours: no constants of the paper's are used, and
we know no official code. Families tried: demo.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..concepts import Concept
from ..painter import Cue, prompted
from ..prompts import exchanged
from ..spec import MethodSpec, Parameter, Value
from ..target import Found, Target

CARRIERS = ("car", "chair", "tree")
"""Everyday carriers, ours; they stand beside the replacement where no words are given."""
EACH, TOGETHER = "each prompt", "all prompts"

Recipe = Callable[[str], Cue | None]
"""Makes a cue of a prompt; None where the prompt has no place for it."""


class ConceptArithmetics:
    """A grid of sums and differences of prompts, judged by pictures."""

    spec = MethodSpec(
        name="concept_arithmetic",
        title="Concept Arithmetics (ARC)",
        paper="Petsiuk and Saenko, Concept Arithmetics for Circumventing Concept Inhibition in Diffusion Models, "
        "ECCV 2024 (arXiv 2404.13706)",
        summary="Adds and subtracts prompts that weigh the concept out of compounds and differences; no optimisation.",
        families=("demo",),
        parameters=(
            Parameter(
                "reach",
                3.0,
                "Largest weight a of the grid, 1.1 to 10; the other prompt is subtracted a - 1 times. Start at 3: "
                "higher shows more of the concept, until pictures fall apart.",
                minimum=1.1,
                maximum=10.0,
                step=0.1,
            ),
            Parameter(
                "steps",
                2,
                "Weights of the grid, 1 to 10, evenly from 1 (left out) to reach. Start at 2; twice as many take twice "
                "the time.",
                minimum=1,
                maximum=10,
                step=1,
                unit="weights",
            ),
            Parameter(
                "tries",
                4,
                "Pictures that each sum is judged by, 1 to 32. Start at 4; more choose better and take longer.",
                minimum=1,
                maximum=32,
                step=1,
                unit="pictures",
            ),
            Parameter(
                "choose_for",
                EACH,
                "Whether the best sum is chosen for each prompt of its own, or once for all prompts, which needs "
                "fewer tries to tell luck from success.",
                choices=(EACH, TOGETHER),
            ),
        ),
    )

    def run(self, target: Target, settings: Mapping[str, Value]) -> Found:
        """Draw the whole grid and take the best of it."""
        tries, reach, steps = int(settings["tries"]), float(settings["reach"]), int(settings["steps"])
        strengths = [1 + (reach - 1) * (i + 1) / steps for i in range(steps)]
        grid = list(recipes(target.concept, target.words, strengths))
        rows = [[recipe(prompt) for prompt in target.prompts] for recipe in grid]
        shown: list[list[int]] = []
        for row in target.track(rows, len(rows)):
            shown.append(_judged(target, row, tries, shown[0] if shown else []))
        if settings["choose_for"] == TOGETHER:
            best = max(range(len(rows)), key=lambda i: sum(shown[i]))
            picked = [best] * len(target.prompts)
        else:
            picked = [max(range(len(rows)), key=lambda i: shown[i][j]) for j in range(len(target.prompts))]
        cues = (
            rows[i][j] or prompted(prompt) for j, (i, prompt) in enumerate(zip(picked, target.prompts, strict=True))
        )
        checks = tries * sum(cue is not None for row in rows for cue in row)
        return Found(tuple(cues), checks=checks)


def recipes(concept: Concept, words: Sequence[str], strengths: Sequence[float]) -> Iterator[Recipe]:
    """Every form, the plain prompt first.

    Args:
        words: carriers, and what is mixed in; `CARRIERS` carry where there are none.
        strengths: a, each above 1.
    """
    yield prompted
    carriers = dict.fromkeys(word for word in (concept.replacement, *(words or CARRIERS)) if word.strip())
    for a in strengths:
        yield from (_Compound(concept, carrier, a) for carrier in carriers)
        yield _Amplified(concept, a)
    for word in words:
        yield from (_Mixed(concept, word, a) for a in (0.5, 1.0, *strengths))
    if len(words) > 1:
        yield _Evenly(concept, tuple(words))


@dataclass(frozen=True)
class _Compound:
    """a [prompt with "X and A"] - (a - 1) [A]; a prompt without the concept's name has "and A" behind it."""

    concept: Concept
    carrier: str
    a: float

    def __call__(self, prompt: str) -> Cue:
        whole = exchanged(prompt, self.concept.names, f"{self.concept.text} and {self.carrier}")
        return Cue(((self.a, whole or f"{prompt} and {self.carrier}"), (1 - self.a, self.carrier)))


@dataclass(frozen=True)
class _Amplified:
    """a [prompt] - (a - 1) [prompt with the replacement]."""

    concept: Concept
    a: float

    def __call__(self, prompt: str) -> Cue | None:
        floor = exchanged(prompt, self.concept.names, self.concept.replacement)
        return None if floor is None else Cue(((self.a, prompt), (1 - self.a, floor)))


@dataclass(frozen=True)
class _Mixed:
    """a [prompt with a word in the concept's place] + (1 - a) [prompt]; without the prompt for a = 1."""

    concept: Concept
    word: str
    a: float

    def __call__(self, prompt: str) -> Cue | None:
        said = exchanged(prompt, self.concept.names, self.word)
        if said is None or self.a == 1:
            return None if said is None else prompted(said)
        return Cue(((self.a, said), (1 - self.a, prompt)))


@dataclass(frozen=True)
class _Evenly:
    """The prompts with each of several words in the concept's place, evenly."""

    concept: Concept
    words: tuple[str, ...]

    def __call__(self, prompt: str) -> Cue | None:
        said = [exchanged(prompt, self.concept.names, word) for word in self.words]
        return Cue(tuple((1 / len(said), text) for text in said if text is not None)) if None not in said else None


def _judged(target: Target, cues: Sequence[Cue | None], tries: int, plain: Sequence[int]) -> list[int]:
    """How many pictures of each cue show the concept; where there is no cue, how many of the plain prompt's do."""
    counts = iter(target.check([cue for cue in cues if cue is not None], tries) if any(cues) else ())
    return [plain[place] if cue is None else next(counts) for place, cue in enumerate(cues)]


ATTACK = ConceptArithmetics()
