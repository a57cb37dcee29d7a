"""Erase-and-check: its certificate, what it counts, and what is drawn for a flagged prompt."""

from __future__ import annotations

from itertools import combinations
from math import comb

import pytest
import torch
from lethe.erasers.concepts import Concept, ConceptList
from lethe.erasers.guards.erase_and_check import BLOCK, GUARD, SUBSETS, SUFFIX, Checked, erased_sets
from lethe.erasers.model import Token
from lethe.erasers.rewrite import Wordbook
from torch import Tensor
from toy_tower import ToyModel
from word_tower import WordTower, wordbook_of

MODES = (SUFFIX, BLOCK, SUBSETS)
D, BUDGET = 3, 5000


class Shy(Wordbook):
    """Recognises a prompt only by itself: whatever is added hides it."""

    def asking(self, contents: list[list[Token]]) -> list[bool]:  # type: ignore[override]
        plain = self.tower.content("a red ball")
        return [content == plain for content in contents]


@pytest.fixture
def tower() -> WordTower:
    return WordTower()


def part(words: Wordbook, mode: str = SUFFIX, most: int = D, empty: bool = False) -> Checked:
    return Checked(words, mode, most, BUDGET, 0, empty)


def shy(tower: WordTower) -> Wordbook:
    book = wordbook_of(tower, [("ball", "box")], {"ball": 1.0})
    return Shy(book.tower, book.gate, book.entries)


def with_added(plain: list[int], where: tuple[int, ...]) -> list[int]:
    """A prompt of which the tokens at `where` were added to `plain`."""
    rest = iter(plain)
    return [20 + i if i in where else next(rest) for i in range(len(plain) + len(where))]


@pytest.mark.parametrize("mode", MODES)
def test_what_is_flagged_stays_flagged_whatever_is_added(tower: WordTower, mode: str) -> None:
    words, plain = shy(tower), tower.tower().content("a red ball")
    for size in range(D + 2):
        length = len(plain) + size
        every = list(combinations(range(length), size))
        added = {
            SUFFIX: [tuple(range(len(plain), length))],
            BLOCK: [where for where in every if not where or where[-1] - where[0] == size - 1],
            SUBSETS: every,
        }
        for where in added[mode]:
            found = part(words, mode).flagged(with_added(plain, where))
            assert found == (plain if size <= D else None)


def test_a_suffix_does_not_cover_a_block_nor_that_two(tower: WordTower) -> None:
    words, plain = shy(tower), tower.tower().content("a red ball")
    front, apart = with_added(plain, (0,)), with_added(plain, (0, 4))
    assert [part(words, mode).flagged(front) is not None for mode in MODES] == [False, True, True]
    assert [part(words, mode).flagged(apart) is not None for mode in MODES] == [False, False, True]


def test_the_sets_are_as_many_as_published_and_fewer_tokens_come_first() -> None:
    counted = {mode: list(erased_sets(8, mode, D, BUDGET, 0)) for mode in MODES}
    assert [len(counted[mode]) - 1 for mode in MODES] == [D, 8 + 7 + 6, sum(comb(8, i) for i in range(1, D + 1))]
    for sets in counted.values():
        assert sets[0] == () and len(set(sets)) == len(sets)
        assert [len(places) for places in sets] == sorted(len(places) for places in sets)
    assert [list(erased_sets(2, mode, 9, BUDGET, 0)) for mode in MODES] == [[(), (1,)], *[[(), (0,), (1,)]] * 2]
    assert all(list(erased_sets(5, mode, 0, BUDGET, 0)) == [()] for mode in MODES)


def test_random_subsets_keep_the_budget_and_follow_the_seed() -> None:
    drawn = [list(erased_sets(30, SUBSETS, 6, 50, seed)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) == 51
    assert [len(places) for places in drawn[0]] == sorted(len(places) for places in drawn[0])
    assert {len(places) for places in drawn[0]} == set(range(7))
    assert all(0 <= i < 30 for places in drawn[0] for i in places)


def test_checks_cost_what_is_said(tower: WordTower) -> None:
    checked, content = part(wordbook_of(tower, [("ball", "box")], {})), tower.tower().content("a b c d e f g")
    tower.rows = 0
    assert checked.flagged(content) is None and tower.rows == 1 + D


def test_the_flagged_prompt_is_rewritten_without_what_hid_it(tower: WordTower) -> None:
    own, words = tower.tower(), shy(tower)
    hidden, other = own.ids("a red ball zxq qqv"), own.ids("a tree")
    found = part(words).read([other, hidden])
    assert torch.equal(found, own.run(["a tree", "a red box"])[0].flatten(0, 1))
    assert torch.equal(part(words, empty=True).read([other, hidden]), own.run(["", ""])[0].flatten(0, 1))
    assert part(words).read([other, own.ids("")]) is None


def test_settings_reach_the_part() -> None:
    task = ToyModel().task(ConceptList().with_concept(Concept("ball", "box")).with_preserved(("tree lamp", "red cat")))
    given = {"mode": SUBSETS, "d": 4, "threshold": 0.7, "instead": "empty", "budget": 9, "seed": 3}
    found = GUARD.plan(task, GUARD.spec.settings(given))
    assert isinstance(found.text, Checked) and found.reader is found.text
    own = found.text
    assert (own.mode, own.most, own.budget, own.seed, own.empty) == (SUBSETS, 4, 9, 3, True)
    assert own.words.gate.threshold == 0.7
    assert isinstance(own.words.tower.features([[1]]), Tensor)
