"""Rewriting on tokens: names, longer names first, and words that only features give away."""

from __future__ import annotations

import pytest
import torch
from lethe.erasers.concepts import Concept, ConceptList
from lethe.erasers.errors import ConceptError
from lethe.erasers.gates.discriminant import fit_gate
from lethe.erasers.model import Strand
from lethe.erasers.rewrite import wordbook
from toy_tower import ToyModel
from word_tower import END, TOKENS, WIDTH, WordTower, wordbook_of


@pytest.fixture
def tower() -> WordTower:
    return WordTower()


def rewritten(tower: WordTower, prompt: str, entries: list[tuple[str, str]], likeness: dict[str, float]) -> str:
    book = wordbook_of(tower, entries, likeness)
    return tower.decode([t for t in book.rewrite(tower.tower().content(prompt)) if isinstance(t, int)])


def test_names_give_way_to_their_replacements(tower: WordTower) -> None:
    entries = [("ball", "wooden box"), ("ball gown", "coat"), ("orb", "")]
    assert rewritten(tower, "a ball and a ball gown or an orb", entries, {}) == "a wooden box and a coat or an"
    assert rewritten(tower, "a red tree", entries, {}) == "a red tree"


def test_a_word_that_only_looks_like_the_concept_is_replaced_once(tower: WordTower) -> None:
    entries = [("ball", "box")]
    assert rewritten(tower, "a red sphere here", entries, {"ball": 1.0, "sphere": 0.6}) == "a red box here"
    assert rewritten(tower, "a sphere and a globe", entries, {"sphere": 0.8, "globe": 0.6}) == "a box and a"
    assert rewritten(tower, "a ball like a globe", entries, {"ball": 1.0, "globe": 0.6}) == "a box like a"
    assert rewritten(tower, "a nearly round thing", entries, {"round": 0.49}) == "a nearly round thing"


def test_what_nothing_helps_becomes_the_replacement(tower: WordTower) -> None:
    alike = {word: 0.9 for word in ("one", "two", "three", "four", "five", "six")}
    assert rewritten(tower, "one two three four five six", [("ball", "box")], alike) == "box"


def test_it_asks_by_name_or_by_likeness(tower: WordTower) -> None:
    book = wordbook_of(tower, [("red ball", "box")], {"sphere": 0.5, "disc": 0.49})
    own = tower.tower()
    prompts = ("a red ball", "a sphere", "a red", "ball red", "a disc", "")
    assert book.asking([own.content(prompt) for prompt in prompts]) == [True, True, False, False, False, False]
    book.gate.readers[0, END] = 0.6
    assert book.asking([own.content("a tree"), []]) == [True, False]


def test_vectors_are_no_names_but_are_looked_at(tower: WordTower) -> None:
    book = wordbook_of(tower, [("ball", "box")], {"ball": 1.0})
    own = tower.tower()
    learned, harmless = torch.eye(WIDTH)[own.content("ball")[0]], torch.eye(WIDTH)[30]
    assert book.asking([[learned], [harmless]]) == [True, False]
    assert book.rewrite([own.content("a")[0], learned]) == own.content("a box")
    kept = book.rewrite([harmless, *own.content("ball")])
    assert kept[0] is harmless and kept[1:] == own.content("box")


def test_chunks_lose_their_frame(tower: WordTower) -> None:
    own = tower.tower()
    assert own.spoken([own.ids("a red ball")]) == [own.content("a red ball")]
    full = [*own.ids("")[:1], *range(TOKENS - 1)]
    assert own.spoken([own.ids(""), full]) == [[], full[1:]]
    assert own.spoken([Strand.of([5, 6, 7, 8], range(2, 3), "t5xxl")]) == [[7]]


def test_a_task_gives_names_and_the_gates_readers_in_one_order() -> None:
    kept = ConceptList().with_preserved(("tree lamp", "old house"))
    model = ToyModel()
    both = kept.with_concept(Concept("ball", "box", ("orb",))).with_concept(Concept("cat", "dog"))
    book = wordbook(model.task(both), 0.5)
    assert [model.text_of(entry.name) for entry in book.entries] == ["ball", "orb", "cat"]
    assert [model.text_of(entry.replacement) for entry in book.entries] == ["box", "box", "dog"]
    for number, name in enumerate(("ball", "orb", "cat")):
        alone = fit_gate(model.task(kept.with_concept(Concept(name))), 0.5)
        assert torch.allclose(book.gate.readers[number], alone.readers[0])
    assert torch.equal(book.tower.features([[1, 2], [3]])[12:], model.read([book.tower.padded([3])])[0][0])
    with pytest.raises(ConceptError, match="no concept"):
        wordbook(model.task(ConceptList()), 0.5)


def test_a_words_place_goes_to_the_concept_it_is_most_like(tower: WordTower) -> None:
    book, own = wordbook_of(tower, [("ball", "box"), ("cat", "dog")], {"sphere": 0.9}), tower.tower()
    book.gate.readers[1, own.content("feline")[0]] = 0.8
    assert book.rewrite(own.content("a feline")) == own.content("a dog")
    assert book.rewrite(own.content("a sphere")) == own.content("a box")
    assert book.rewrite(own.content("a feline sphere")) == own.content("a box")
