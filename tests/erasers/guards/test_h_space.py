"""Directions in h-space: what a training finds where it can be known by hand."""

from __future__ import annotations

import re
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from lethe.erasers.concepts import Concept, ConceptList
from lethe.erasers.errors import FamilyError
from lethe.erasers.guards.h_space import GUARD, Budget, draw_lessons, learn_directions
from lethe.erasers.learn.space import wide
from lethe.erasers.registry import families
from lethe.erasers.task import EncodedPrompt, Task
from torch import Tensor, nn

MISSING = {"ball": torch.tensor([1.0, -2.0, 0.0, 0.5]), "fish": torch.tensor([0.0, 3.0, -1.0, 0.25])}
"""What each concept's text takes away of the picture that its replacement has."""
PICTURES = {"box": 1.0, "heart": -2.0, "": 0.5}


class Toy:
    """Sees the right noise but for what is missing, which only the end of the middle block can give back."""

    in_place = False

    def __init__(self) -> None:
        self.middle = nn.ModuleDict({f"mid_block_resnets_{i}_conv2": nn.Conv2d(4, 4, 1) for i in range(2)})
        self.middle.requires_grad_(False)
        for module in self.middle.values():
            nn.init.zeros_(module.weight)  # type: ignore[arg-type]
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        self.sampled: list[str] = []

    def modules(self, pattern: str) -> dict[str, nn.Module]:
        named = {f"mid_block.resnets.{i}.conv2": module for i, module in enumerate(self.middle.values())}
        return {name: module for name, module in named.items() if re.search(pattern, name)}

    def parameter(self, name: str) -> Tensor:
        return torch.zeros(4, 4, 1, 1)

    def sample(self, prompts: list[str], steps: int, cfg: float, seed: int) -> Tensor:
        self.sampled = prompts
        return torch.stack(
            [torch.full((4, 2, 2), PICTURES[prompt.split()[-1] if prompt else ""]) for prompt in prompts]
        )

    def prediction(self) -> str:
        return "eps"

    def level(self, percent: Tensor) -> Tensor:
        return 5 - 4 * percent

    def device(self) -> torch.device:
        return torch.device("cpu")

    def ready(self) -> Any:
        return nullcontext()

    def predict(self, x: Tensor, sigma: Tensor, context: Tensor, pooled: Tensor | None = None) -> Tensor:
        names = list(MISSING)
        missing = torch.stack([MISSING[names[int(row)]] for row in context[:, 0, 0]])[..., None, None]
        picture = torch.stack([torch.tensor(PICTURES[("box", "heart")[int(row)]]) for row in context[:, 0, 0]])
        halves = torch.zeros_like(x)
        first, last = self.middle.values()
        # What is added anywhere else than at the end counts tenfold.
        given = 10 * first(halves) + last(halves)
        return (x - wide(picture, x)) / wide(sigma, x) - missing + given


def toy_task(*concepts: Concept) -> tuple[Toy, Task]:
    def encode(prompts: list[str]) -> list[EncodedPrompt]:
        numbers = [list(MISSING).index(prompt.split()[-1]) for prompt in prompts]
        return [EncodedPrompt(p, torch.full((3, 2), float(n)), 1) for p, n in zip(prompts, numbers, strict=True)]

    model: Any = Toy()
    return model, Task(ConceptList(concepts), families()["demo"], "toy", encode, model=model)


BALL, FISH = Concept("ball", "box"), Concept("fish", "heart")


def test_each_concepts_vector_is_what_its_text_lacks() -> None:
    _, task = toy_task(BALL, FISH)
    vectors = learn_directions(task, draw_lessons(task, "object", 6), Budget(400, 0.05, 8))
    assert torch.allclose(vectors, torch.stack(list(MISSING.values())), atol=0.02)


def test_the_first_step_of_adam_goes_the_rate_towards_it() -> None:
    _, task = toy_task(BALL)
    (vector,) = learn_directions(task, draw_lessons(task, "none", 2), Budget(1, 0.1, 2))
    assert torch.allclose(vector, 0.1 * MISSING["ball"].sign(), atol=1e-3)


def test_pictures_of_the_replacement_stand_under_sentences_of_the_concept() -> None:
    model, task = toy_task(BALL, Concept("fish"))
    lessons = draw_lessons(task, "object", 3)
    assert lessons.prompts == ("ball", "image of ball", "photo of ball", "fish", "image of fish", "photo of fish")
    assert model.sampled == ["box", "image of box", "photo of box", "", "", ""]
    assert lessons.concepts.tolist() == [0, 0, 0, 1, 1, 1]


def test_vectors_are_weighed_and_added_and_none_is_learned_for_nothing() -> None:
    model, task = toy_task(BALL, FISH)
    given = {"weight": -0.5, "steps": 400, "pictures": 4, "rate": 0.05}
    middle = GUARD.plan(task, GUARD.spec.settings(given)).middle
    assert middle is not None and torch.allclose(middle.vector, -0.5 * sum(MISSING.values()), atol=0.05)  # type: ignore
    model.sampled = []
    assert GUARD.plan(task, GUARD.spec.settings({"weight": 0.0})).middle is None and not model.sampled


def test_a_model_without_a_middle_block_is_refused() -> None:
    model, task = toy_task(BALL)
    model.modules = lambda pattern: {}  # type: ignore[method-assign]
    with pytest.raises(FamilyError, match="middle"):
        learn_directions(task, draw_lessons(task, "none", 1), Budget(1, 0.1, 1))
