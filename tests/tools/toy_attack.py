"""A toy model, a painter and a target for attacks that search prompts: everything can be computed by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from lethe.erasers.concepts import Concept
from lethe.erasers.painter import Shot
from lethe.erasers.result import ContextOperator
from lethe.erasers.target import Target
from torch import Tensor
from toy_tower import END, START, ToyModel

BALL = Concept("ball", "box")


class WordModel(ToyModel):
    """A toy model whose every token is a word, w0 to w97, and whose errors do not depend on noise or time.

    Attributes:
        gain: of what the features say.
        predictions: how many noise predictions it has made.
        times: the share of sampling of each call.
    """

    def __init__(self, seed: int = 0, gain: float = 1.0) -> None:
        super().__init__(seed=seed)
        self.words = {f"w{number}": number for number in range(min(START, END))}
        self.gain, self.predictions, self.times = gain, 0, list[float]()

    def sample(
        self, prompts: list[str], steps: int, cfg: float, seed: int,
        on_step: Callable[[int], None] | None = None, operators: Mapping[str, ContextOperator] | None = None,
    ) -> Tensor:  # fmt: skip
        self.predictions += 2 * steps * len(prompts)
        with torch.no_grad():
            return self.said(self.run(prompts)[0])

    def predict_noise(
        self, latents: Tensor, noise: Tensor, percent: float | Tensor, context: Tensor, cfg: float = 1.0
    ) -> Tensor:
        """The noise, were the latents what the context says; guidance exaggerates the difference."""
        self.predictions += len(latents) * (1 if cfg == 1 else 2)
        self.times.append(float(torch.as_tensor(percent).mean()))
        return noise + cfg * (self.said(context) - latents)

    def said(self, context: Tensor) -> Tensor:
        """What features `[n, tokens, 16]` say, `[n, 2, 2, 2]`."""
        said = sum(block["attn2"](context) for block in self.unet.values())  # type: ignore[index]
        assert isinstance(said, Tensor)
        return self.gain * said.mean(1).reshape(-1, 2, 2, 2)


class ScriptedPainter:
    """A painter whose pictures show the concept where a rule of text and seed says so."""

    def __init__(self, rule: Callable[[str, int], bool]) -> None:
        self.rule, self.shots = rule, list[Shot]()

    def paint(self, shots: Sequence[Shot]) -> Tensor:
        """`[n, 1, 1, 1]`, 1 where the concept shows."""
        self.shots += shots
        return torch.tensor([float(self.rule(shot.cue.text, shot.seed)) for shot in shots]).reshape(-1, 1, 1, 1)

    @property
    def texts(self) -> list[str]:
        """What was painted, in order."""
        return [shot.cue.text for shot in self.shots]


def never(_text: str, _seed: int) -> bool:
    """A concept that stays away."""
    return False


def scripted(
    guarded: Any, base: Any, prompts: tuple[str, ...], rule: Callable[[str, int], bool] = never, seed: int = 0
) -> tuple[Target, ScriptedPainter]:
    """A target whose check pictures follow a rule, and its painter."""
    painter: Any = ScriptedPainter(rule)
    shows: Callable[[Tensor], Tensor] = lambda pictures: pictures.flatten(1)[:, 0] > 0.5  # noqa: E731
    return Target(BALL, prompts, guarded, base, painter, shows, steps=3, seed=seed), painter
