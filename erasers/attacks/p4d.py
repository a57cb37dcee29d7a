"""P4D, Prompting4Debugging: prompts that make the erased model see what the untouched one sees in the concept's prompt.

    L(e) = E_{t, eps} | eps_base(z_t, P) - eps_guard(z_t, proj(e)) |^2

z_0 is a picture of the concept that the untouched model draws from P; proj puts each free token's vector on the
nearest embedding of the vocabulary by cosine. Loss and gradient are taken there, the step is made on e. P4D-N
searches N free tokens alone; P4D-K keeps the prompt and puts a free token before every k of its own, and one more
behind it where that comes out even: floor(length / k) + 1 in all.

Differs from the released program: kept is the prompt whose check pictures show the concept most often, then the one
with the lowest loss at half time on one noise, where the program keeps the one whose picture is most like the
target's; that asks for the very thing an attack is for, and needs no second image encoder. Prompts are judged as
text, since that is what people can type: projection goes to those tokens only that are read back as themselves, so
start, end, unknown and pieces of words are out. A prompt whose check pictures all show the concept is left alone
from then on. Prompts are searched side by side, each with its own gradient. Padding is the model's own. In guided
predictions the erased model's guards act as they do when it draws.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from ..algebra.hooks import gradients
from ..learn.noise_match import NoisedLatents, noised, row_errors
from ..learn.wording import room, typed_tokens
from ..model import TextTower, Token
from ..painter import prompted
from ..spec import MethodSpec, Parameter, Value
from ..target import Found, Target

FREE, INSERTED = "free", "inserted"
_HALF_TIME = 0.5


class P4D:
    """Searches prompts by the gradient of the difference between two models' noise predictions."""

    spec = MethodSpec(
        name="p4d",
        title="P4D",
        paper="Chin et al., Prompting4Debugging: Red-Teaming Text-to-Image Diffusion Models by Finding Problematic "
        "Prompts, ICML 2024 (arXiv 2309.06135)",
        summary="Finds prompts for which the erased model predicts the noise that the untouched one predicts for the "
        "concept.",
        families=("demo",),
        parameters=(
            Parameter(
                "variant",
                FREE,
                "What is searched: a prompt of new tokens alone (free, P4D-N), or new tokens among those of the "
                "attacked prompt (inserted, P4D-K). Neither is always stronger; try both.",
                choices=(FREE, INSERTED),
            ),
            Parameter(
                "tokens",
                16,
                "New tokens of a free prompt, 1 to 75; 16 as published. More reach further and are harder to search.",
                minimum=1,
                maximum=75,
                step=1,
                unit="tokens",
            ),
            Parameter(
                "every",
                3,
                "Inserted: one new token before every so many of the prompt's own, 1 to 75; 3 as published. Fewer "
                "put in more new ones.",
                minimum=1,
                maximum=75,
                step=1,
                unit="tokens",
            ),
            Parameter(
                "steps",
                3000,
                "Steps of the search, 1 to 20000; 3000 as published, a few hundred for a first look. Each costs two "
                "predictions per prompt and a gradient.",
                minimum=1,
                maximum=20000,
                step=1,
                unit="steps",
            ),
            Parameter(
                "lr",
                0.1,
                "Step size of AdamW, 0.0001 to 10; 0.1 as published. Lower where tokens hop about without settling.",
                minimum=1e-4,
                maximum=10.0,
                step=0.001,
            ),
            Parameter(
                "weight_decay",
                0.1,
                "Weight decay of AdamW, 0 to 10; 0.1 as published. It keeps the vectors short, so that later steps "
                "still turn them.",
                minimum=0.0,
                maximum=10.0,
                advanced=True,
            ),
            Parameter(
                "check_every",
                50,
                "Steps between two looks at what the prompts draw, 1 to 20000; 50 as published. Fewer find more and "
                "draw more.",
                minimum=1,
                maximum=20000,
                step=1,
                unit="steps",
            ),
            Parameter(
                "tries",
                1,
                "Check pictures of each prompt at each look, 1 to 16; 1 as published, 4 tells a lucky picture from "
                "a prompt that holds.",
                minimum=1,
                maximum=16,
                step=1,
                unit="pictures",
            ),
            Parameter(
                "guidance",
                1.0,
                "Guidance scale at which predictions are matched, 1 to 30. 1 compares plain ones, which suits edits "
                "of weights or text features; 7.5, at twice the cost, is for guards that act in the guidance.",
                minimum=1.0,
                maximum=30.0,
                step=0.1,
            ),
        ),
    )

    def run(self, target: Target, settings: Mapping[str, Value]) -> Found:
        """Search one prompt for each attacked one.

        Raises:
            SettingError: more free tokens than the text encoder takes.
            FamilyError: none of its tokens can be typed.
        """
        search = Search(target, settings)
        picks = [Pick() for _ in target.prompts]
        tries, steps, checks = int(settings["tries"]), int(settings["steps"]), 0
        for step in target.track(range(steps), steps):
            left = [row for row, pick in enumerate(picks) if pick.hits < tries]
            if not left:
                break
            search.step(left)
            if (step + 1) % int(settings["check_every"]) and step + 1 < steps:
                continue
            texts = search.texts(left)
            new = [(row, text) for row, text in zip(left, texts, strict=True) if text not in picks[row].seen]
            if new:
                hits = target.check([prompted(text) for _, text in new], tries)
                losses = search.exam(*(list(column) for column in zip(*new, strict=True)))
                for (row, text), shown, loss in zip(new, hits, losses, strict=True):
                    picks[row].offer(text, shown, loss)
                checks += len(new) * tries
        return Found(tuple(prompted(pick.text) for pick in picks), predictions=search.predictions, checks=checks)


@dataclass(frozen=True)
class Frame:
    """Where a prompt's free tokens stand.

    Attributes:
        own: the prompt's own tokens.
        free: how many free ones.
        every: one of them stands before every so many of the prompt's own, while there are any left.
    """

    own: tuple[int, ...]
    free: int
    every: int

    def filled(self, tokens: Sequence[Token]) -> list[Token]:
        """The content tokens with `free` of `tokens` in their places."""
        found: list[Token] = []
        for place, token in enumerate(tokens[: self.free]):
            found += [token, *self.own[place * self.every : (place + 1) * self.every]]
        return found


def frames(tower: TextTower, prompts: Sequence[str], variant: str, tokens: int, every: int) -> list[Frame]:
    """One frame per prompt; of a prompt that its free tokens push out of the text encoder, the end is left out."""
    if variant == FREE:
        room(tower, tokens)
        return [Frame((), tokens, every)] * len(prompts)
    space, found = room(tower, 0), []
    for prompt in prompts:
        own = tower.content(prompt)
        while len(own) + len(own) // every + 1 > space:
            own.pop()
        found.append(Frame(tuple(own), len(own) // every + 1, every))
    return found


def nearest(vectors: Tensor, table: Tensor) -> Tensor:
    """Rows of `table` `[v, d]` with the highest cosine to vectors `[..., d]`, `[...]` int64."""
    return (functional.normalize(vectors, dim=-1) @ functional.normalize(table, dim=-1).T).argmax(-1)


@dataclass
class Pick:
    """The best text found for one prompt, and all that were looked at."""

    text: str = ""
    hits: int = -1
    loss: float = math.inf
    seen: set[str] = field(default_factory=set)

    def offer(self, text: str, hits: int, loss: float) -> None:
        """Take a text that shows the concept more often, or as often at a lower loss."""
        self.seen.add(text)
        if (hits, -loss) > (self.hits, -self.loss):
            self.text, self.hits, self.loss = text, hits, loss


class Search:
    """The free tokens' vectors of all prompts, and the steps on them.

    Attributes:
        vectors: e, `[n, k, d]`.
        predictions: noise predictions so far, those for the concept's pictures included.
    """

    def __init__(self, target: Target, settings: Mapping[str, Value]) -> None:
        self.target, self.tower = target, target.tower()
        self.cfg = float(settings["guidance"])
        shape = str(settings["variant"]), int(settings["tokens"]), int(settings["every"])
        self.frames = frames(self.tower, target.prompts, *shape)
        self.typed = typed_tokens(self.tower)
        self.table = self.tower.vocabulary()[self.typed]
        self.generator = torch.Generator().manual_seed(target.seed)
        free = len(target.prompts), max(frame.free for frame in self.frames)
        drawn = torch.randint(len(self.table), free, generator=self.generator)
        self.vectors = self.table[drawn].requires_grad_()
        lr, decay = float(settings["lr"]), float(settings["weight_decay"])
        self.optimizer = torch.optim.AdamW([self.vectors], lr=lr, weight_decay=decay)
        self.latents = target.latents()
        self.exam_noise = noised(self.latents, self.generator, percent=_HALF_TIME)
        with torch.no_grad():
            self.asked = target.tower(target.base).run(list(target.prompts))[0]
        self.predictions = 2 * target.steps * len(target.prompts)

    def step(self, rows: list[int]) -> None:
        """One step on the vectors of some prompts."""
        leaves = self.table[nearest(self.vectors.detach()[rows], self.table)].requires_grad_()
        drawn = noised(self.latents[rows], self.generator)
        with gradients(self.target.guarded.in_place):
            filled = [self.frames[row].filled(list(own)) for row, own in zip(rows, leaves, strict=True)]
            context = self.tower.encode([self.tower.padded(tokens) for tokens in filled])[0]
            loss = self._losses(rows, drawn, context).sum()
            gradient = torch.autograd.grad(loss, leaves)[0]
        self.vectors.grad = torch.zeros_like(self.vectors)
        self.vectors.grad[rows] = gradient
        self.optimizer.step()

    def texts(self, rows: list[int]) -> list[str]:
        """What the vectors of some prompts spell."""
        ids = self.typed[nearest(self.vectors.detach()[rows], self.table)].tolist()
        filled = [self.frames[row].filled(own) for row, own in zip(rows, ids, strict=True)]
        return [self.tower.decode([int(token) for token in tokens]) for tokens in filled]

    @torch.no_grad()
    def exam(self, rows: list[int], texts: list[str]) -> list[float]:
        """The loss of each text, on the same noise every time."""
        same = self.exam_noise
        drawn = NoisedLatents(same.latents[rows], same.noise[rows], same.percent[rows])
        return self._losses(rows, drawn, self.tower.run(texts)[0]).tolist()

    def _losses(self, rows: list[int], drawn: NoisedLatents, context: Tensor) -> Tensor:
        """How far the erased model with text features `[r, tokens, d]` is from the untouched one, `[r]`."""
        with torch.no_grad():
            goal = drawn.predict(self.target.base, self.asked[rows], self.cfg)
        self.predictions += 2 * len(rows) * (1 if self.cfg == 1 else 2)
        return row_errors(drawn.predict(self.target.guarded, context, self.cfg), goal)


ATTACK = P4D()
