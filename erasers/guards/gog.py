"""GoG, Guardians of Generation (2025): a prompt that asks for a concept is rewritten, and guidance follows both.

    hit   = likeness(p) >= tau,  or a name of the concept stands in p
    p'    = rewrite(p)                                          where hit
    mixed = (1 - r) eps_p' + r eps_p,   r = rho max(0, (t - s) / (1 - s))
    eps   = eps_u + w (mixed - eps_u)

with t the share of sampling that is done, so that the original prompt returns late, if at all, when the layout is
settled. At rho = 0 this is the rewritten prompt's own picture, and costs no prediction.

Differs from the paper: likeness is that of the gate (gate.py), trained on the preserved prompts, not a cosine; a
dictionary of the concepts' own replacements rewrites, where the paper asks a language model (one, or any other function
from text to text, goes into `GoG(rewriter)`, and the dictionary mends what it leaves); pictures that are being drawn
are not looked at. Whole features are swapped: edits of guards before this one and weights of words, as in '(ball:1.3)',
are lost on a prompt that is rewritten. Longer prompts are rewritten chunk by chunk. Models with several text encoders,
or others than CLIP, are rewritten word by word instead of token by token, and their pooled features change with it.
No official code was read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..guard import Guarding, Look
from ..model import Token
from ..read_features import Swapped
from ..rewrite import Wordbook, wordbook
from ..spec import MethodSpec, Parameter, Value
from ..task import Task
from ..window import Window

Rewriter = Callable[[str], str]


@dataclass(frozen=True, eq=False)
class Rewriting(Swapped):
    """The text part: the rewritten prompt, where the prompt asks for a concept.

    Attributes:
        words: tells who asks, and rewrites.
        rewriter: rewrites before it, or None.
    """

    words: Wordbook
    rewriter: Rewriter | None

    def read(self, chunks: Sequence[Sequence[Token]]) -> Any:
        """What to draw the rewritten prompt with; None where no chunk of it asks for a concept."""
        contents = self.words.tower.spoken(chunks)
        asking = self.words.asking(contents)
        if not any(asking):
            return None
        pairs = zip(contents, asking, strict=True)
        return self.words.tower.features([self._rewrite(content) if asks else content for content, asks in pairs])

    def _rewrite(self, content: Sequence[Token]) -> Sequence[Token]:
        if self.rewriter is not None:
            text = self.words.tower.decode([token for token in content if isinstance(token, int)])
            content = self.words.tower.content(self.rewriter(text))
        return self.words.rewrite(content)


@dataclass(frozen=True)
class Returning:
    """The mix: the original prompt's prediction comes back.

    Attributes:
        rho: its share at the end of sampling.
        start: s.
    """

    rho: float
    start: float

    def __call__(self, look: Look) -> tuple[Tensor, Tensor]:
        assert look.original is not None
        share = self.rho * max(0.0, look.percent - self.start) / (1 - self.start)
        return torch.lerp(look.said, look.original, share), look.unsaid


class GoG:
    """Rewrites prompts that ask for the concept; `rewriter` is a function from text to text, e.g. a language model."""

    needs = (
        "Needs the prompt's tokens, so encode the prompt with this node's CLIP; name many preserved prompts, which "
        "train its detector. Any model; works at CFG 1. Costs some encodings of a prompt that "
        "is rewritten, and one prediction more per step where rho is above 0."
    )
    spec = MethodSpec(
        name="gog",
        title="Guardians of Generation",
        paper="Guardians of Generation: Dynamic Inference-Time Copyright Shielding with Adaptive Guidance for AI Image "
        "Generation, 2025",
        summary="Finds prompts that ask for the concept, and draws them with its replacement in its place.",
        families=("demo",),
        parameters=(
            Parameter(
                "tau",
                0.5,
                "A prompt with a word at least this much like the concept is rewritten, 0.05 to 2; one that names it "
                "always is. The concept's own name has 1, what is preserved about 0 (see the summary). Start at 0.5.",
                minimum=0.05,
                maximum=2.0,
            ),
            Parameter(
                "rho",
                0.0,
                "Share of the original prompt in the guidance at the end of sampling, 0 to 1. 0 is the rewritten "
                "prompt alone; 0.3 keeps more of what was asked, and may bring the concept back.",
            ),
            Parameter(
                "start",
                0.6,
                "Share of sampling from which on the original prompt's share rises from 0, 0 to 0.99. Start at 0.6.",
                maximum=0.99,
            ),
        ),
    )

    def __init__(self, rewriter: Rewriter | None = None) -> None:
        self.rewriter = rewriter

    def plan(self, task: Task, settings: Mapping[str, Value]) -> Guarding:
        """A text part that rewrites, and a mix where the original returns."""
        rho, start = float(settings["rho"]), float(settings["start"])
        part = Rewriting(wordbook(task, float(settings["tau"])), self.rewriter)
        if not rho:
            return Guarding(text=part, reader=part)
        return Guarding(mix=Returning(rho, start), window=Window(start), text=part, reader=part, unedited=True)


GUARD = GoG()
