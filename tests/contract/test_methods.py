"""What every registered method promises, on a toy text encoder."""

from __future__ import annotations

import pytest
import torch
from lethe.erasers.concepts import Concept, ConceptList
from lethe.erasers.errors import ConceptError
from lethe.erasers.registry import families, methods
from lethe.erasers.result import Eraser
from lethe.erasers.task import EncodedPrompt, Task

WIDTH, TOKENS = 192, 77
CONCEPTS = ConceptList(preserve=("box", "green tree")).with_concept(Concept("ball", "cone", ("orb",)))


def encode(prompts: list[str]) -> list[EncodedPrompt]:
    """A causal toy encoder: every position is a mix of the words up to it."""
    found = []
    for prompt in prompts:
        words = prompt.split()
        rows, state = [], torch.ones(WIDTH) / 10
        for position in range(TOKENS):
            word = words[position - 1] if 0 < position <= len(words) else f"pad {position}"
            seed = sum(ord(letter) * 31**i for i, letter in enumerate(word)) % 2**31 if position else 1
            state = 0.5 * state + torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))
            rows.append(state)
        found.append(EncodedPrompt(prompt, torch.stack(rows), len(words)))
    return found


def fit(name: str, concepts: ConceptList = CONCEPTS, **given: object) -> Eraser:
    method = methods()[name]
    return method.fit(Task(concepts, families()["demo"], "toy", encode), method.spec.settings(given))


@pytest.fixture(params=sorted(methods()))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def test_the_concept_moves_and_the_kept_stay(name: str) -> None:
    operator = fit(name).context["clip_l"]
    erased, target, kept = (encode([prompt])[0].states for prompt in ("ball", "cone", "box"))
    moved = operator.apply(erased)
    assert (moved - target).norm() < 0.3 * (erased - target).norm()
    assert (operator.apply(kept) - kept).norm() < 0.3 * (erased - target).norm()
    synonym = encode(["orb"])[0].states
    assert (operator.apply(synonym) - target).norm() < 0.3 * (synonym - target).norm()


def test_the_same_task_gives_the_same_eraser(name: str) -> None:
    one, other = fit(name).context["clip_l"].tensors(), fit(name).context["clip_l"].tensors()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_the_recipe_says_how_it_was_made(name: str) -> None:
    recipe = fit(name).recipe
    assert recipe.method == name
    assert recipe.settings == methods()[name].spec.settings({})
    assert [concept["text"] for concept in recipe.concepts] == ["ball"]
    assert recipe.preserve == CONCEPTS.kept
    assert recipe.family == "demo"


def test_nothing_to_erase_is_refused(name: str) -> None:
    with pytest.raises(ConceptError, match="no concept"):
        fit(name, ConceptList(preserve=("box",)))


def test_many_concepts_at_once(name: str) -> None:
    concepts = ConceptList()
    for index in range(30):
        concepts = concepts.with_concept(Concept(f"thing{index}", "cone"))
    operator = fit(name, concepts).context["clip_l"]
    assert operator.dense is not None
