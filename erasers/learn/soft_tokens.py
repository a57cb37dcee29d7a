"""An adversary of free vectors among the tokens that a text encoder reads, as AdvUnlearn has it (arXiv 2405.15234).

It looks for vectors v with which the student predicts for the prompt what the teacher does without them:

    min_v mse( S(x, t, E(v + c)), T(x, t, E0(c)) )

on one latent that is new at each of its steps. One set of vectors serves all rows of a step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..algebra.hooks import gradients
from ..model import TextTower, Token
from .moment import CONCEPT, MAIN, STUDENT, TEACHER, Ask, Features, Latents, Moment
from .plan import Source, Wrapped
from .regress import Regress
from .run import Run
from .wording import room

PREFIX, BETWEEN = "prefix", "between"
"""Where the vectors stand: before a prompt's tokens, or after the first half of them."""
RANDOM, LATEST = "random", "latest"
"""Where the search begins: at the embeddings of random tokens, or where the last one ended."""
_MEMORY = "soft tokens"


@dataclass(frozen=True)
class SoftTokens:
    """Trains the vectors against the student as it is, and gives the features of prompts with them in.

    Attributes:
        source: gives the latents of the search.
        count: k, vectors.
        place: PREFIX or BETWEEN.
        steps, rate: of the search, with Adam.
        start: RANDOM or LATEST.
        role: whose prompts they stand in.
        at: name of the latents.
    """

    source: Source
    count: int = 1
    place: str = PREFIX
    steps: int = 30
    rate: float = 1e-3
    start: str = RANDOM
    role: str = CONCEPT
    at: str = MAIN

    def make(self, run: Run, moment: Moment) -> Features:
        vectors = self._first(run)
        adam = torch.optim.Adam([vectors], lr=self.rate)
        for _ in range(self.steps):
            drawn = self.source.draw(run, 1)
            ask = Ask(TEACHER, self.role, self.at)
            goal = run.seen([ask], drawn)[ask]
            with gradients(run.model.in_place):
                said = run.student(drawn[self.at], self.read(run, drawn[self.at], vectors))
                # The gradient is set, not added: those of earlier steps belong to other latents and other vectors.
                (vectors.grad,) = torch.autograd.grad((said - goal).square().mean(), [vectors])
            adam.step()
        run.memory[_MEMORY] = vectors.detach().clone()
        return self.read(run, moment[self.at], run.memory[_MEMORY])

    def read(self, run: Run, latents: Latents, vectors: Tensor) -> Features:
        """What the student's text encoder makes of the prompts with vectors `[k, d]` in them; gradients reach both."""
        tower = run.model.tower()
        prompts = [scene[self.role] for scene in latents.scenes]
        return Features(tower.encode([self.spelled(tower, prompt, vectors) for prompt in prompts])[0])

    def spelled(self, tower: TextTower, prompt: str, vectors: Tensor) -> Sequence[Token]:
        """A prompt's tokens, padded, with vectors `[k, d]` among them; what no longer fits is cut off at its end."""
        content: list[Token] = list(tower.content(prompt))
        cut = 0 if self.place == PREFIX else (len(content) + 1) // 2
        return tower.padded([*content[:cut], *vectors.unbind(), *content[cut:]])

    def found(self, run: Run) -> Tensor:
        """The vectors of the last search, `[k, d]`; none before the first."""
        return run.memory.get(_MEMORY, torch.zeros(0, 1))

    def _first(self, run: Run) -> Tensor:
        if self.start == LATEST and _MEMORY in run.memory:
            return run.memory[_MEMORY].clone().requires_grad_()
        tower = run.model.tower()
        room(tower, self.count, own=1)
        table = run.once(self, tower.vocabulary)
        chosen = torch.randint(len(table), (self.count,), generator=run.generator)
        return table[chosen].clone().requires_grad_()


@dataclass(frozen=True)
class Attacked(Wrapped):
    """A term whose student reads prompts with the adversary's vectors in them, and plain ones before its first search.

    A trained text encoder needs this: the features that a maker leaves behind carry no gradients.

    Attributes:
        term: says target, weight and aim.
        adversary: its vectors are taken as they are.
    """

    term: Regress
    adversary: SoftTokens

    def asks(self) -> Sequence[Ask]:
        return [ask for ask in self.term.asks() if ask.source != STUDENT]

    def loss(self, run: Run, moment: Moment, seen: Mapping[Ask, Tensor]) -> Tensor:
        latents = moment[self.term.at]
        features = self.adversary.read(run, latents, self.adversary.found(run))
        said = run.student(latents, features)
        return self.term.loss(run, moment, {**seen, Ask(STUDENT, self.term.student, self.term.at): said})
