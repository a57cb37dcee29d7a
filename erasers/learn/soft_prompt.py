"""Receler's adversary (arXiv 2311.17717): vectors behind a concept's words in its encoded prompt, which bring it back.

m vectors q stand between the concept's last token and the end tokens, of which as many fall off the prompt's end. At
each step AdamW leads them towards what the untouched model predicts for the concept:

    q <- argmin_q mse( S(x, t, [c, q]), T(x, t, c) )

Each prompt has vectors of its own, which go on from step to step. Their decay is AdamW's: as a part of Adam's gradient
it would be a thousand times that of the error, and the attack no more than a way to zero.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..algebra.hooks import gradients
from ..task import EncodedPrompt
from .moment import CONCEPT, MAIN, STUDENT, TEACHER, Ask, Features, Moment
from .run import Run


@dataclass(frozen=True)
class SoftPrompt:
    """Features of the concept's prompts under attack; without steps, of the prompts themselves.

    Attributes:
        vectors: m.
        steps: of AdamW, at each step of the training.
        rate: learning rate of AdamW.
        decay: weight decay of AdamW.
    """

    vectors: int = 16
    steps: int = 50
    rate: float = 0.1
    decay: float = 0.1

    def make(self, run: Run, moment: Moment) -> Features:
        latents = moment[MAIN]
        plain = run.of_role(Ask(STUDENT, CONCEPT), latents)
        if not self.steps:
            return plain
        goal = run.seen([Ask(TEACHER, CONCEPT)], moment)[Ask(TEACHER, CONCEPT)]
        prompts = run.task.encode([scene[CONCEPT] for scene in latents.scenes])
        texts = list(dict.fromkeys(prompt.text for prompt in prompts))
        of_row = [texts.index(prompt.text) for prompt in prompts]
        by_text = {prompt.text: prompt for prompt in prompts}
        leaf = torch.stack([self._start(run, by_text[text]) for text in texts]).requires_grad_()

        def attacked(vectors: Tensor) -> Features:
            rows = [spliced(p.read, p.last + 1, vectors[i]) for p, i in zip(prompts, of_row, strict=True)]
            return replace(plain, states=torch.stack(rows))

        adam = torch.optim.AdamW([leaf], lr=self.rate, weight_decay=self.decay)
        for _ in range(self.steps):
            with gradients(run.model.in_place):
                loss = (run.student(latents, attacked(leaf)) - goal).square().mean()
                (leaf.grad,) = torch.autograd.grad(loss, leaf)
            adam.step()
        found = leaf.detach()
        run.memory |= {_entry(text): vectors.clone() for text, vectors in zip(texts, found, strict=True)}
        return attacked(found)

    def _start(self, run: Run, prompt: EncodedPrompt) -> Tensor:
        """The vectors of the step before, or random ones as large as the prompt's own states, `[m, d]`."""
        if _entry(prompt.text) in run.memory:
            return run.memory[_entry(prompt.text)].clone()
        random = torch.randn(self.vectors, prompt.states.shape[-1], generator=run.fork(_entry(prompt.text)))
        return random * prompt.states.square().mean().sqrt()


def spliced(states: Tensor, place: int, vectors: Tensor) -> Tensor:
    """States `[t, d]` with vectors `[m, d]` put in at a place; what then does not fit falls off the end."""
    return torch.cat([states[:place], vectors.to(states), states[place:]])[: len(states)]


def _entry(text: str) -> str:
    return f"soft prompt {text}"
