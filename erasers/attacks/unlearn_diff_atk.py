"""UnlearnDiffAtk: tokens before a prompt for which the erased model itself sees the concept in a picture of it.

    min_delta E_eps | eps - eps_guard(sqrt(abar_t) x + sqrt(1 - abar_t) eps, delta + P) |^2

x is a picture of the concept that the untouched model draws from P. delta is k tokens, each a row of a relaxed
one-hot matrix u on the simplex over the vocabulary, from 1/|V| on. Forward, a token is drawn from each row; backward,
the gradient towards the drawn one-hot row goes straight through to u, clipped to [-1, 1]. After a step of Adam each
row is put back on the simplex. Timesteps come in ascending order, from little noise to much; after each, the most
likely tokens are put before the prompt and drawn with, and the first success ends the search for that prompt.

Differs from the released program: the projection is exact, not by bisection. The loss is a mean over a prediction's
elements, at which the clipping acts on steep gradients only. Prompts are judged as text, since that
is what people can type: the vocabulary is those tokens that are read back as themselves, so start, end, unknown and
pieces of words are out. Prompts are searched side by side, each with its own gradient. Where k tokens push a prompt
out of the text encoder, the end of the prompt is left out.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..algebra.hooks import gradients
from ..algebra.simplex import project_simplex
from ..learn.noise_match import noised, row_errors
from ..learn.wording import room, typed_tokens
from ..painter import prompted
from ..spec import MethodSpec, Parameter, Value
from ..target import Found, Target


class UnlearnDiffAtk:
    """Searches tokens to put before prompts, with the erased model as its own judge."""

    spec = MethodSpec(
        name="unlearn_diff_atk",
        title="UnlearnDiffAtk",
        paper="Zhang et al., To Generate or Not? Safety-Driven Unlearned Diffusion Models Are Still Easy to Generate "
        "Unsafe Images ... For Now, ECCV 2024 (arXiv 2310.11868)",
        summary="Puts a few tokens before the prompt for which the erased model best recognises the concept in a "
        "picture of it.",
        families=("demo",),
        parameters=(
            Parameter(
                "tokens",
                5,
                "Tokens put before the prompt, 1 to 74; as published 5, and 3 for styles. More reach further and "
                "are harder to search.",
                minimum=1,
                maximum=74,
                step=1,
                unit="tokens",
            ),
            Parameter(
                "iterations",
                40,
                "Steps of the search at each timestep, 1 to 1000; 40 as published.",
                minimum=1,
                maximum=1000,
                step=1,
                unit="steps",
            ),
            Parameter(
                "timesteps",
                50,
                "Timesteps, evenly spaced from little noise to much, 1 to 1000; 50 as published, 10 for a first "
                "look. The prompt is tried after each.",
                minimum=1,
                maximum=1000,
                step=1,
                unit="timesteps",
            ),
            Parameter(
                "lr",
                0.01,
                "Step size of Adam on the tokens' probabilities, 0.0001 to 1; 0.01 as published. Higher settles "
                "sooner on one choice.",
                minimum=1e-4,
                maximum=1.0,
                step=0.001,
            ),
            Parameter(
                "weight_decay",
                0.1,
                "Weight decay of Adam, 0 to 10; 0.1 as published. It holds probabilities near each other, so that "
                "the search goes on.",
                minimum=0.0,
                maximum=10.0,
                advanced=True,
            ),
            Parameter(
                "tries",
                1,
                "Check pictures of each prompt after each timestep, 1 to 16; 1 as published. One that shows the "
                "concept is a success.",
                minimum=1,
                maximum=16,
                step=1,
                unit="pictures",
            ),
            Parameter(
                "guidance",
                1.0,
                "Guidance scale of the predictions, 1 to 30. 1 takes plain ones, as published; 7.5, at twice the "
                "cost, is for guards that act in the guidance.",
                minimum=1.0,
                maximum=30.0,
                step=0.1,
            ),
        ),
    )

    def run(self, target: Target, settings: Mapping[str, Value]) -> Found:
        """Search tokens for each prompt that does not show the concept as it is; the others stay.

        Raises:
            SettingError: more tokens than the text encoder takes beside a prompt.
            FamilyError: none of its tokens can be typed.
        """
        room(target.tower(), int(settings["tokens"]), own=1)
        texts, tries, count = list(target.prompts), int(settings["tries"]), int(settings["timesteps"])
        checks = tries * len(texts)
        left = [row for row, shown in enumerate(target.check(target.plain(), tries)) if not shown]
        if not left:
            return Found(target.plain(), checks=checks)
        search = Search(target, settings)
        for index in target.track(range(count), count):
            if not left:
                break
            for _ in range(int(settings["iterations"])):
                search.step(left, 1 - (index + 0.5) / count)
            for row, text in zip(left, search.texts(left), strict=True):
                texts[row] = text
            hits = target.check([prompted(texts[row]) for row in left], tries)
            checks += tries * len(left)
            left = [row for row, shown in zip(left, hits, strict=True) if not shown]
        return Found(tuple(prompted(text) for text in texts), predictions=search.predictions, checks=checks)


class Search:
    """The relaxed tokens of all prompts, and the steps on them.

    Attributes:
        shares: u, `[n, k, v]`; each row on the simplex over the v tokens that can be typed.
        predictions: noise predictions so far, those for the concept's pictures included.
    """

    def __init__(self, target: Target, settings: Mapping[str, Value]) -> None:
        self.target, self.tower = target, target.tower()
        self.cfg = float(settings["guidance"])
        self.own = [self.tower.content(prompt) for prompt in target.prompts]
        self.typed = typed_tokens(self.tower)
        self.table = self.tower.vocabulary()[self.typed]
        self.generator = torch.Generator().manual_seed(target.seed)
        shape = len(target.prompts), int(settings["tokens"]), len(self.table)
        self.shares = torch.full(shape, 1 / len(self.table)).requires_grad_()
        lr, decay = float(settings["lr"]), float(settings["weight_decay"])
        self.optimizer = torch.optim.Adam([self.shares], lr=lr, weight_decay=decay)
        self.latents = target.latents()
        self.predictions = 2 * target.steps * len(target.prompts)

    def step(self, rows: list[int], percent: float) -> None:
        """One step on the tokens of some prompts, at one time (0 all noise, 1 none)."""
        self.shares.grad = torch.zeros_like(self.shares)
        self.shares.grad[rows] = self.gradient(rows, percent).clamp(-1, 1)
        self.optimizer.step()
        with torch.no_grad():
            self.shares.copy_(project_simplex(self.shares))

    def gradient(self, rows: list[int], percent: float) -> Tensor:
        """Gradient of each prompt's loss towards the one-hot rows drawn for it, `[r, k, v]`."""
        shares = self.shares.detach()[rows]
        drawn = torch.multinomial(shares.flatten(0, 1), 1, generator=self.generator).reshape(shares.shape[:2])
        latents = noised(self.latents[rows], self.generator, percent=percent)
        leaves = self.table[drawn].requires_grad_()
        with gradients(self.target.guarded.in_place):
            tokens = [[*found, *self.own[row]] for row, found in zip(rows, leaves, strict=True)]
            context = self.tower.encode([self.tower.padded(row) for row in tokens])[0]
            seen = latents.predict(self.target.guarded, context, self.cfg)
            gradient = torch.autograd.grad(row_errors(seen, latents.noise).sum(), leaves)[0]
        self.predictions += len(rows) * (1 if self.cfg == 1 else 2)
        return gradient @ self.table.T

    def texts(self, rows: list[int]) -> list[str]:
        """The most likely tokens of some prompts, before each."""
        found = self.typed[self.shares.detach()[rows].argmax(-1)].tolist()
        return [self.tower.decode([*ids, *self.own[row]]) for row, ids in zip(rows, found, strict=True)]


ATTACK = UnlearnDiffAtk()
