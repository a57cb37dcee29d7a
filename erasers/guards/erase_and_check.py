"""Erase-and-check (Kumar et al., 2023, arXiv 2309.02705) for prompts: words that were added cannot hide a concept.

    flagged(p)  <=>  f(p)  or  f(p without E)  for any E of a family of sets of tokens

    suffix    the last i tokens,          i = 1 ... d     d checks
    block     any i tokens in a row,      i = 1 ... d     about n d checks
    subsets   any i tokens,               i = 1 ... d     all of them, or as many at random as there is a budget for

f tells that a prompt asks for the concept: a name of it stands there, or its features are like it (gate.py).

What is certain: if f flags a prompt, and someone adds at most d tokens to it (at its end; in one place; anywhere), it
is flagged still, as one of the erased prompts is the prompt before the addition. So the share of prompts with such
additions that is flagged is at least the share of plain prompts that f flags, which can be counted. It does not hold
where subsets are drawn at random, for prompts of more than one chunk but with suffix (chunks are checked one by one),
and for paraphrases, or words that are changed or left out. It says that a prompt is flagged, not what is drawn then;
and the more is erased, the more harmless prompts are flagged.

Of a flagged prompt the first of the erased ones that f flags, so that with the least erased, is rewritten (rewrite.py)
and drawn in its place, or the empty prompt is. Differs from the paper: that is about language models, with a model
trained for f. Whole features are swapped: edits of guards before this one and weights of words are lost then. Vectors
of textual inversions are tokens like others. Models with several text encoders, or others than CLIP, are checked word
by word instead of token by token, without such vectors. No official code was read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb
from random import Random
from typing import Any

from ..guard import Guarding
from ..model import Token
from ..read_features import Swapped
from ..rewrite import Wordbook, wordbook
from ..spec import MethodSpec, Parameter, Value
from ..task import Task

SUFFIX, BLOCK, SUBSETS = "suffix", "block", "subsets"
REWRITTEN, EMPTY = "rewritten", "empty"
_AT_A_TIME = 32


def erased_sets(length: int, mode: str, most: int, budget: int, seed: int) -> Iterator[tuple[int, ...]]:
    """Places to erase of `length` tokens, fewer first: none, then up to `most`; some token is always left.

    Args:
        mode: SUFFIX, BLOCK or SUBSETS.
        budget: for SUBSETS: how many sets at most; where there are more, as many drawn at random.
    """
    yield ()
    sizes = range(1, min(most, length - 1) + 1)
    if mode == SUFFIX:
        yield from (tuple(range(length - size, length)) for size in sizes)
    elif mode == BLOCK:
        yield from (tuple(range(at, at + size)) for size in sizes for at in range(length - size + 1))
    elif sum(comb(length, size) for size in sizes) <= budget:
        yield from (places for size in sizes for places in combinations(range(length), size))
    else:
        drawn, random = set[tuple[int, ...]](), Random(seed)
        while len(drawn) < budget:
            drawn.add(tuple(sorted(random.sample(range(length), random.choice(sizes)))))
        yield from sorted(drawn, key=lambda places: (len(places), places))


@dataclass(frozen=True, eq=False)
class Checked(Swapped):
    """The text part: another prompt for those that are flagged.

    Attributes:
        words: f, and the rewriting.
        mode, most, budget, seed: of `erased_sets`.
        empty: whether the empty prompt is drawn, and not a rewritten one.
    """

    words: Wordbook
    mode: str
    most: int
    budget: int
    seed: int
    empty: bool

    def read(self, chunks: Sequence[Sequence[Token]]) -> Any:
        """What to draw with; None where nothing is flagged."""
        contents = self.words.tower.spoken(chunks)
        flagged = [self.flagged(content) for content in contents]
        if all(found is None for found in flagged):
            return None
        if self.empty:
            return self.words.tower.features([[] for _ in contents])
        pairs = zip(contents, flagged, strict=True)
        return self.words.tower.features([own if found is None else self.words.rewrite(found) for own, found in pairs])

    def flagged(self, content: Sequence[Token]) -> list[Token] | None:
        """The first of a prompt and what erasing leaves of it that asks for the concept; None where none does."""
        sets = list(erased_sets(len(content), self.mode, self.most, self.budget, self.seed)) if content else []
        for start in range(0, len(sets), _AT_A_TIME):
            left = [[t for i, t in enumerate(content) if i not in set(places)] for places in sets[start:][:_AT_A_TIME]]
            found = next((own for own, asks in zip(left, self.words.asking(left), strict=True) if asks), None)
            if found is not None:
                return found
        return None


class EraseAndCheck:
    """Checks a prompt and what is left of it when tokens are erased."""

    needs = (
        "Needs the prompt's tokens, so encode the prompt with this node's CLIP; name many preserved prompts, which "
        "train its classifier. Any model; works at CFG 1. Costs encodings of a prompt: d for a "
        "suffix, about its length times d for a block, the budget for subsets; nothing per step."
    )
    spec = MethodSpec(
        name="erase_and_check",
        title="Erase-and-check",
        paper="Kumar et al., Certifying LLM Safety against Adversarial Prompting, 2023 (arXiv 2309.02705)",
        summary="Finds prompts that ask for the concept, even behind words added to hide it, and draws others instead.",
        families=("demo",),
        parameters=(
            Parameter(
                "mode",
                SUFFIX,
                "Where words may have been added: at the end (suffix), in one place (block), or anywhere (subsets). "
                "Start with suffix, which is cheap.",
                choices=(SUFFIX, BLOCK, SUBSETS),
            ),
            Parameter(
                "d",
                20,
                "How many added tokens it stands against, 0 to 75. Start at 20; 0 checks the prompt alone. More also "
                "flags more that is harmless.",
                maximum=75,
                step=1,
                unit="tokens",
            ),
            Parameter(
                "threshold",
                0.5,
                "Likeness to the concept from which on a prompt is flagged, 0.05 to 2; one that names it always is. "
                "The concept's own name has 1, what is preserved about 0 (see the summary). Start at 0.5.",
                minimum=0.05,
                maximum=2.0,
            ),
            Parameter(
                "instead",
                REWRITTEN,
                "What is drawn for a flagged prompt: it with the concept's replacement (rewritten), or the empty "
                "prompt. Start with rewritten.",
                choices=(REWRITTEN, EMPTY),
            ),
            Parameter(
                "budget",
                256,
                "For subsets: the most checks of one prompt, 1 to 100000. Where there are more subsets, so many are "
                "drawn at random, and nothing is certain. Start at 256.",
                minimum=1,
                maximum=100000,
                step=1,
                advanced=True,
            ),
            Parameter(
                "seed", 0, "For subsets drawn at random, 0 to 2147483647.", maximum=2**31 - 1, step=1, advanced=True
            ),
        ),
    )

    def plan(self, task: Task, settings: Mapping[str, Value]) -> Guarding:
        """A text part that checks the prompt's tokens."""
        words = wordbook(task, float(settings["threshold"]))
        most, budget, seed = (int(settings[name]) for name in ("d", "budget", "seed"))
        part = Checked(words, str(settings["mode"]), most, budget, seed, settings["instead"] == EMPTY)
        return Guarding(text=part, reader=part)


GUARD = EraseAndCheck()
