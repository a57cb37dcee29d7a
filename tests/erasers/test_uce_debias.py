"""UCE's debiasing loop on a toy model whose pictures lean towards one attribute."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lethe.erasers.concepts import Concept, ConceptList
from lethe.erasers.errors import ConceptError, FamilyError
from lethe.erasers.methods.uce_debias import METHOD, attributes_of, missing_shares, shifted_target
from lethe.erasers.registry import families
from lethe.erasers.task import EncodedPrompt, Task
from torch import Tensor

WIDTH = 192
AXES = {"male": 0, "female": 1, "doctor": 2}


def encode(prompts: list[str]) -> list[EncodedPrompt]:
    """A word is an axis; a doctor leans towards male."""
    found = []
    for prompt in prompts:
        row = torch.zeros(WIDTH)
        for word in prompt.split():
            row[AXES.get(word, 3)] += 1.0
        if prompt == "doctor":
            row[0] += 0.5
        states = torch.stack([torch.ones(WIDTH) / WIDTH, row, row])
        found.append(EncodedPrompt(prompt, states, 1 if prompt else 0))
    return found


class Toy:
    """Pictures are the edited last token plus noise; they are read by the nearest attribute."""

    def __init__(self) -> None:
        self.drawn = 0

    def sample(self, prompts: list[str], steps: int, cfg: float, seed: int, operators: Any = None) -> Tensor:
        self.drawn += len(prompts)
        rows = torch.stack([prompt.states[1] for prompt in encode(prompts)])
        noise = torch.randn(len(prompts), WIDTH, generator=torch.Generator().manual_seed(seed)) * 0.5
        return (operators["clip_l"].apply(rows) if operators else rows) + noise

    def embed_latents(self, latents: Tensor) -> Tensor:
        return latents[:, :2]

    def embed_text(self, prompts: list[str]) -> Tensor:
        return torch.tensor([[0.0, 1.0] if "female" in prompt else [1.0, 0.0] for prompt in prompts])


def _task(toy: Any, concept: Concept, sight: Any) -> Task:
    return Task(ConceptList().with_concept(concept), families()["demo"], "toy", encode, toy, sight=sight)


def _shares(operator: Any) -> Tensor:
    drawn = Toy().sample(["doctor"] * 400, 1, 1.0, 99, operator and {"clip_l": operator})[:, :2]
    return torch.bincount(drawn.argmax(1), minlength=2) / 400


def test_the_loop_brings_the_shares_together() -> None:
    toy = Toy()
    settings = METHOD.spec.settings({"pictures": 200, "rounds": 20})
    eraser = METHOD.fit(_task(toy, Concept("doctor", "male, female"), toy), settings)
    before, after = _shares(None), _shares(eraser.context["clip_l"])
    assert float((before - 0.5).abs().max()) > 0.2
    assert float((after - 0.5).abs().max()) < 0.1
    assert toy.drawn < 20 * 200
    empty = encode([""])[0].states
    assert torch.allclose(eraser.context["clip_l"].apply(empty), empty, atol=0.05)


def test_the_gains_are_a_sum_of_what_was_missing() -> None:
    assert torch.allclose(missing_shares(torch.tensor([0.7, 0.2, 0.1])).sum(), torch.tensor(0.0), atol=1e-6)
    rows, first, second = torch.ones(2, 3), torch.full((2, 3), 2.0), torch.full((2, 3), 5.0)
    found = shifted_target(rows, [first, second], torch.tensor([0.5, -0.2]))
    assert torch.allclose(found, torch.ones(2, 3))


def test_what_cannot_be_balanced_is_refused() -> None:
    toy = Toy()
    for replacement in ("", "male", "male, male"):
        with pytest.raises(ConceptError, match="attribute"):
            attributes_of(Concept("doctor", replacement))
    with pytest.raises(FamilyError, match="looks at pictures"):
        METHOD.fit(_task(toy, Concept("doctor", "male, female"), None), METHOD.spec.settings({}))
    with pytest.raises(ConceptError, match="no concept"):
        METHOD.fit(Task(ConceptList(), families()["demo"], "toy", encode), METHOD.spec.settings({}))
