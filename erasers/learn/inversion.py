"""Textual inversion (Gal et al., ICLR 2023, arXiv 2208.01618): token vectors that say what pictures show.

Vectors v stand among the tokens of a sentence, in place of their embeddings, and are fitted to noised pictures z:

    v* = argmin_v E_{z, t, eps} |w * (truth - prediction(z_t, "... <v> ..."))|^2

The truth is what was mixed into the picture, in the model's own prediction space (learn/space.py), so that models of
every kind have their vectors; w weighs places of a picture, 1 where nothing is said. The model stays as it is.

`learn_vectors` stands on its own; `Word` is its use in a training. Attacks that fit vectors to another loss share
`descend`, `first_vectors` and `spliced`.

Differs from the released program: any number of vectors, AdamW's rate is not multiplied by the pictures of a step,
sentences are the caller's, and nothing is drawn to look at on the way.
Official code: rinongal/textual_inversion (MIT).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..algebra.hooks import gradients
from ..errors import SettingError
from ..model import Model, TextTower, Token, is_vector
from ..target import Item, Track, untracked
from .moment import MAIN, Features, Moment, Scene
from .pictures import Pictures
from .run import Run
from .space import mixed, own_space

INVERTED = "inverted"
"""The role of the concept's prompt with learned vectors in place of its name."""
Row = Callable[[int, Tensor], Sequence[Token]]
"""The padded tokens of a picture's sentence, by the picture's number and the vectors `[k, d]` as they are so far."""


@dataclass(frozen=True)
class Fit:
    """How vectors are fitted: steps of AdamW, its rate, and noised pictures of a step."""

    steps: int = 1000
    rate: float = 5e-3
    batch: int = 4


@dataclass(frozen=True)
class Lesson:
    """What vectors are fitted to.

    Attributes:
        latents: `[p, c, h, w]`, clean.
        row: the sentence of each picture.
        weights: `[p, h, w]`, factors of the squared error, or None for 1 everywhere.
    """

    latents: Tensor
    row: Row
    weights: Tensor | None = None


def descend(
    start: Tensor, loss: Callable[[Tensor], Tensor], steps: int, rate: float, track: Track = untracked
) -> Tensor:
    """Vectors `[k, d]` that AdamW finds from `start`, which is left alone; not in inference mode.

    Args:
        loss: a scalar for vectors, drawn anew at each call; gradients are on there.
    """
    word = start.detach().clone().requires_grad_()
    adam = torch.optim.AdamW([word], lr=rate)
    for _ in track(range(steps), steps):
        with gradients():
            (word.grad,) = torch.autograd.grad(loss(word), word)
        adam.step()
    return word.detach()


@torch.inference_mode(False)
def learn_vectors(
    model: Model, lesson: Lesson, start: Tensor, fit: Fit, generator: torch.Generator, track: Track = untracked
) -> Tensor:
    """Token vectors `[k, d]` that make a model see what is in pictures; only inside `model.ready()`.

    Args:
        start: `[k, d]` float32, where the search begins.
        generator: of pictures, times and noise.
        track: goes through the steps; what it raises ends the search.

    Raises:
        SettingError: there are no pictures.
        FamilyError: the model has more than one text encoder.
    """
    if not len(lesson.latents):
        raise SettingError("There is no picture to learn from.", "Give one or more.")
    tower, kind, clean = model.tower(), model.prediction(), lesson.latents.float().cpu()

    def loss(word: Tensor) -> Tensor:
        chosen = torch.randint(len(clean), (fit.batch,), generator=generator)
        latents = clean[chosen]
        noise = torch.randn(latents.shape, generator=generator)
        sigma = model.level(torch.rand(len(latents), generator=generator))
        x = mixed(kind, latents, noise, sigma)
        context = tower.encode([lesson.row(i, word) for i in chosen.tolist()])[0]
        seen = model.predict(x, sigma, context)
        error = (seen - own_space(kind, x, sigma, latents).to(seen)).square()
        return error.mean() if lesson.weights is None else (error * lesson.weights[chosen, None].to(error)).mean()

    return descend(start, loss, fit.steps, fit.rate, track)


def first_vectors(tower: TextTower, phrase: str, count: int) -> Tensor:
    """Where a search begins, `[count, d]` float32: embeddings of a phrase's tokens in turn.

    A phrase without tokens gives the vocabulary's mean.
    """
    vocabulary, tokens = tower.vocabulary(), tower.content(phrase) if phrase else []
    if not tokens:
        return vocabulary.mean(0).repeat(count, 1)
    return vocabulary[[tokens[i % len(tokens)] for i in range(count)]].clone()


def spliced(tower: TextTower, prompt: str, names: Sequence[str], word: Tensor) -> list[Token]:
    """The padded tokens of a prompt with the vectors `[k, d]` in place of each of the names in it.

    Where none of the names stands in the prompt, or the vectors do not fit there, they stand at its end.
    """
    content, vectors = tower.content(prompt), list(word)
    spelled = sorted((tower.content(name) for name in names), key=len, reverse=True)
    room = len(tower.ids("")) - 2
    found: list[Token] = []
    place = 0
    while place < len(content):
        name = next((name for name in spelled if name and content[place : place + len(name)] == name), None)
        found += [content[place]] if name is None else vectors
        place += 1 if name is None else len(name)
    if sum(is_vector(token) for token in found[:room]) < len(vectors):
        found = [*found[: max(room - len(vectors), 0)], *vectors]
    return tower.padded(found)


@dataclass(frozen=True)
class Word:
    """Vectors that are learned once, from pictures, and then stand for the concept in its prompts.

    Attributes:
        pictures: what they are learned from; a scene's prompt for their role is a picture's sentence.
        names: what the vectors stand in place of; the search begins at the first.
        count: k, vectors; 0 leaves the prompts as they are.
        fit: how they are fitted.
        at: name of the latents whose rows get features.
    """

    pictures: Pictures
    names: tuple[str, ...]
    count: int = 1
    fit: Fit = Fit()
    at: str = MAIN

    def vectors(self, run: Run) -> Tensor:
        """The vectors, `[k, d]`; learned at the first call, through the model as it was before training."""
        return run.once(self, lambda: self._learn(run))

    def features(self, run: Run, scenes: Sequence[Scene]) -> Features:
        """The teacher's features of the scenes' prompts with the vectors in them, without gradients."""
        word, role, tower = self.vectors(run), self.pictures.role, run.model.tower()
        if not len(word):
            return run.features([scene[role] for scene in scenes])
        rows = [spliced(tower, scene[role], self.names, word) for scene in scenes]
        with run.trainables.off(), torch.no_grad():
            return Features(tower.encode(rows)[0].cpu())

    def make(self, run: Run, moment: Moment) -> Features:
        return self.features(run, moment[self.at].scenes)

    def _learn(self, run: Run) -> Tensor:
        tower, clean, role = run.model.tower(), self.pictures.clean(run), self.pictures.role
        lesson = Lesson(clean.latents, lambda i, word: spliced(tower, clean.scenes[i][role], self.names, word))
        return taught(run, lesson, first_vectors(tower, self.names[0], self.count), self.fit, run.fork("word"))


def taught(run: Run, lesson: Lesson, start: Tensor, fit: Fit, generator: torch.Generator) -> Tensor:
    """`learn_vectors` through the model of a run as it was before training; counts its predictions."""

    def watched(items: Iterable[Item], count: int) -> Iterable[Item]:
        for item in run.task.track(items, count):
            run.pulse()
            run.predictions += fit.batch
            yield item

    if not len(start):
        return start
    with run.trainables.off():
        return learn_vectors(run.model, lesson, start, fit, generator, watched)
