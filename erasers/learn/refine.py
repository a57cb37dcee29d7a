"""Reference pictures in text features: tokens that stand for a picture, refined by the concept's words.

A text-to-image model without an image adapter takes a picture as token vectors that were learned from it. Refinement
is one step of attention with the picture's tokens I as queries and the words' features as keys and values (Co-Erasing,
arXiv 2505.11131):

    I' = softmax(I K^T / sqrt(d)) V,    K = V = features of the concept's prompt

So every refined token is a mixture of the words' features, and the picture says how they are mixed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..model import TextTower
from .inversion import Fit, Lesson, first_vectors, spliced, taught
from .moment import MAIN, Features, Moment, Scene
from .pictures import Pictures
from .run import Run

SHOWN = "shown"
"""The role of the concept's prompt together with a picture of it."""


def refined(tokens: Tensor, words: Tensor) -> Tensor:
    """Tokens `[k, d]` as mixtures of features `[m, d]`."""
    return torch.softmax(tokens @ words.T / math.sqrt(words.shape[1]), dim=-1) @ words


@dataclass(frozen=True)
class Illustrated:
    """The concept's prompts with the tokens of a picture behind their words, another picture at every draw.

    Attributes:
        pictures: each has vectors of its own, learned once in place of the names in its prompt.
        names: what the vectors are learned in place of; the search begins at the first.
        fit: how they are fitted.
        count: k, vectors of a picture; 0 leaves the prompts as they are.
        refine: whether the picture's tokens are refined. The words' features are then as without the picture;
            otherwise those behind the vectors have seen them.
        at: name of the latents whose rows get features.
    """

    pictures: Pictures
    names: tuple[str, ...]
    fit: Fit
    count: int = 4
    refine: bool = True
    at: str = MAIN

    def vectors(self, run: Run) -> Tensor:
        """The vectors of every picture, `[p, k, d]`; learned at the first call."""
        return run.once(self, lambda: self._learn(run))

    def make(self, run: Run, moment: Moment) -> Features:
        scenes, role = moment[self.at].scenes, self.pictures.role
        plain = run.features([scene[role] for scene in scenes])
        if not self.count:
            return plain
        words = self.vectors(run)
        chosen = torch.randint(len(words), (len(scenes),), generator=run.generator).tolist()
        return Features(self._shown(run, scenes, words[chosen], plain.states))

    def _shown(self, run: Run, scenes: Sequence[Scene], words: Tensor, plain: Tensor) -> Tensor:
        """Features `[n, tokens, d]` of the scenes' prompts with the vectors `[n, k, d]` behind their words."""
        tower = run.model.tower()
        prompts = [scene[self.pictures.role] for scene in scenes]
        rows = [spliced(tower, prompt, (), word) for prompt, word in zip(prompts, words, strict=True)]
        with run.trainables.off(), torch.no_grad():
            states = tower.encode(rows)[0].cpu()
        if not self.refine:
            return states
        places = [_end(tower, prompt, self.count) for prompt in prompts]
        return torch.stack([_refined(*row, self.count) for row in zip(states, plain, places, strict=True)])

    def _learn(self, run: Run) -> Tensor:
        tower, clean = run.model.tower(), self.pictures.clean(run)
        start, generator = first_vectors(tower, self.names[0], self.count), run.fork("reference pictures")
        learned = []
        for latents, scene in zip(clean.latents, clean.scenes, strict=True):
            prompt = scene[self.pictures.role]
            lesson = Lesson(latents[None], lambda _i, word, prompt=prompt: spliced(tower, prompt, self.names, word))
            learned.append(taught(run, lesson, start, self.fit, generator))
        return torch.stack(learned)


def _end(tower: TextTower, prompt: str, count: int) -> int:
    """Where `count` vectors behind a prompt's words begin."""
    return min(len(tower.content(prompt)) + 1, len(tower.ids("")) - 1 - count)


def _refined(states: Tensor, plain: Tensor, place: int, count: int) -> Tensor:
    """The plain features `[tokens, d]` with refined ones set in at `place`; as many fall off the end."""
    own = refined(states[place : place + count], plain)
    return torch.cat([plain[:place], own, plain[place:]])[: len(plain)]
