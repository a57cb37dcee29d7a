"""What is preserved: Gram matrices of whole lists, less what is erased, from memory and from disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lethe.erasers.algebra.held import hold
from lethe.erasers.concepts import Concept, ConceptList, preserve_list
from lethe.erasers.registry import families
from lethe.erasers.result import ContextOperator, Eraser, Recipe
from lethe.erasers.store.preserve_cache import PreserveCache
from lethe.erasers.task import EncodedPrompt, Task, remembering

WIDTH = 192
LISTED = preserve_list("demo-world")
CONCEPTS = ConceptList(preserve=("one", LISTED[1], "two"), lists=("demo-world",)).with_concept(Concept(LISTED[0], "x"))


class Counting:
    """A toy encoder that counts the prompts it is asked for."""

    def __init__(self, pooled: int = 0) -> None:
        self.asked, self.pooled = 0, pooled

    def __call__(self, prompts: list[str]) -> list[EncodedPrompt]:
        self.asked += len(prompts)
        return [self._encode(prompt) for prompt in prompts]

    def _encode(self, prompt: str) -> EncodedPrompt:
        generator = torch.Generator().manual_seed(sum(ord(letter) * 31**i for i, letter in enumerate(prompt)) % 2**31)
        states = torch.randn(5, WIDTH, generator=generator)
        pooled = torch.randn(self.pooled, generator=generator) if self.pooled else None
        return EncodedPrompt(prompt, states, 1 if prompt else 0, pooled=pooled)


def _task(encode: Counting, concepts: ConceptList = CONCEPTS, cache: PreserveCache | None = None) -> Task:
    return Task(concepts, families()["demo"], "toy", encode, grams=cache or PreserveCache())


@pytest.mark.parametrize("rule", ["last", "eot", "all"])
def test_the_gram_matrix_is_that_of_every_prompt_held_once(rule: str) -> None:
    task = _task(Counting(pooled=3))
    held = hold(task, rule)
    assert set(held.prompts) == {"", "one", "two", *LISTED[1:]}
    tokens = torch.zeros(WIDTH, WIDTH, dtype=torch.float64)
    pooled = torch.zeros(3, 3, dtype=torch.float64)
    for prompt in task.encode(list(held.prompts)):
        chosen = {"last": slice(1, 2), "eot": slice(2, 3), "all": slice(None)}[rule] if prompt.text else slice(None)
        rows = prompt.states[chosen].double()
        tokens += rows.T @ rows
        assert prompt.pooled is not None
        pooled += torch.outer(prompt.pooled.double(), prompt.pooled.double())
    assert torch.allclose(held.tokens.gram, tokens, atol=1e-9)
    assert held.pooled is not None
    assert torch.allclose(held.pooled.gram, pooled, atol=1e-9)
    for prompt, row in zip(task.encode(list(held.prompts)), held.last, strict=True):
        assert torch.equal(prompt.states[prompt.last], row)


@pytest.mark.parametrize(("rule", "few"), [("last", True), ("all", False)])
def test_a_few_prompts_are_held_as_rows(rule: str, few: bool) -> None:
    names = tuple(f"p{i}" for i in range(25))
    task = _task(Counting(pooled=3), ConceptList(preserve=names).with_concept(Concept("x", "y")))
    held = hold(task, rule)
    assert (held.tokens.rows is not None) == few
    rows = torch.cat([p.states if rule == "all" or not p.text else p.states[1:2] for p in task.encode(["", *names])])
    assert torch.allclose(held.tokens.gram, rows.double().T @ rows.double(), atol=1e-9)
    pooled = torch.stack([p.pooled for p in task.encode(["", *names]) if p.pooled is not None]).double()
    assert held.pooled is not None
    assert torch.allclose(held.pooled.gram, pooled.T @ pooled, atol=1e-9)
    assert torch.equal(held.last, torch.stack([p.states[p.last] for p in task.encode(["", *names])]))


def test_a_list_is_encoded_once_even_when_what_is_erased_changes(tmp_path: Path) -> None:
    encode = Counting()
    hold(_task(encode, cache=PreserveCache(tmp_path)), "all")
    first = encode.asked
    other = ConceptList(lists=("demo-world",)).with_concept(Concept(LISTED[2], "x"))
    hold(_task(encode, other, PreserveCache(tmp_path)), "all")
    assert encode.asked - first <= 3
    again = encode.asked
    hold(_task(encode, other, PreserveCache(tmp_path)), "all")
    assert encode.asked == again


def test_another_encoder_or_rule_has_entries_of_its_own(tmp_path: Path) -> None:
    encode, cache = Counting(), PreserveCache(tmp_path)
    one = hold(_task(encode, cache=cache), "all").tokens.gram
    assert not torch.allclose(hold(_task(encode, cache=cache), "last").tokens.gram, one)
    before = encode.asked
    hold(replace(_task(encode, cache=cache), encoder="other"), "all")
    assert encode.asked > before


def test_a_broken_cache_file_is_made_again_and_old_ones_go(tmp_path: Path) -> None:
    encode = Counting()
    expected = hold(_task(encode, cache=PreserveCache(tmp_path)), "all").tokens.gram
    for path in tmp_path.glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:100])
    assert torch.equal(hold(_task(encode, cache=PreserveCache(tmp_path)), "all").tokens.gram, expected)
    for name in range(5):
        one = ConceptList(preserve=(f"prompt {name}",))
        hold(_task(encode, one, PreserveCache(tmp_path, room=3)), "all")
    assert len(list(tmp_path.glob("*.safetensors"))) == 3


def test_a_folder_that_cannot_be_written_costs_only_the_cache(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    encode = Counting()
    assert torch.equal(
        hold(_task(encode, cache=PreserveCache(blocked)), "all").tokens.gram, hold(_task(encode), "all").tokens.gram
    )


def test_what_was_erased_before_is_held() -> None:
    recipe = Recipe("uce", {}, ({"text": "gone", "synonyms": ["away"]}, {"text": LISTED[0]}), (), "demo", "toy")
    earlier = Eraser(recipe, {"clip_l": ContextOperator(dense=torch.zeros(WIDTH, WIDTH))})
    task = replace(_task(Counting()), earlier=(earlier,))
    assert {"gone", "away"} <= set(hold(task, "all").prompts)
    assert LISTED[0] not in task.held


def test_an_encoder_remembers_the_latest_prompts_only() -> None:
    encode = Counting()
    remember = remembering(encode, room=3)
    assert [prompt.text for prompt in remember(["a", "b", "a"])] == ["a", "b", "a"]
    assert encode.asked == 2
    remember(["c", "d"])
    remember(["a"])
    assert encode.asked == 5
