"""Guardians of Generation: who is rewritten, into what, and how the original prompt returns."""

from __future__ import annotations

import pytest
import torch
from lethe.erasers.concepts import Concept, ConceptList
from lethe.erasers.guard import Look
from lethe.erasers.guards.gog import GUARD, GoG, Returning, Rewriting
from toy_tower import ToyModel
from word_tower import WordTower, wordbook_of

BALL = ConceptList().with_concept(Concept("ball", "box")).with_preserved(("tree lamp", "old house", "red cat"))


@pytest.fixture
def tower() -> WordTower:
    return WordTower()


def test_it_reads_the_features_of_the_rewritten_prompt(tower: WordTower) -> None:
    part, own = Rewriting(wordbook_of(tower, [("ball", "box")], {"orb": 0.9}), None), tower.tower()
    assert part.read([own.ids("a red tree"), own.ids("")]) is None
    for prompt in ("a red ball", "a red orb"):
        found = part.read([own.ids("old tree"), own.ids(prompt)])
        assert found is not None
        assert torch.equal(found, own.run(["old tree", "a red box"])[0].flatten(0, 1))


def test_another_rewriter_comes_first_and_the_wordbook_mends_what_it_leaves(tower: WordTower) -> None:
    own, asked = tower.tower(), list[str]()

    def rewriter(text: str) -> str:
        asked.append(text)
        return text.replace("large ball", "heavy cube").replace("small", "tiny")

    part = Rewriting(wordbook_of(tower, [("ball", "box")], {}), rewriter)
    assert torch.equal(part.read([own.ids("a large ball")]), own.run(["a heavy cube"])[0][0])
    assert torch.equal(part.read([own.ids("a small ball")]), own.run(["a tiny box"])[0][0])
    assert part.read([own.ids("a small tree")]) is None
    assert asked == ["a large ball", "a small ball"]
    found = GoG(rewriter).plan(ToyModel().task(BALL), GUARD.spec.settings({})).text
    assert isinstance(found, Rewriting) and found.rewriter is rewriter


def test_the_original_returns_late_by_its_share_of_the_noise() -> None:
    generator = torch.Generator().manual_seed(4)
    p, u, new = (torch.randn(2, 2, 3, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    sigma, x = torch.full((2,), 3.0, dtype=torch.float64), torch.ones(2, 2, 3, 3, dtype=torch.float64)
    mix = Returning(0.4, 0.6)
    for percent, share in ((0.3, 0.0), (0.6, 0.0), (0.8, 0.2), (1.0, 0.4)):
        look = Look(x, sigma, percent, x - 3 * new, x - 3 * u, {}, {}, x - 3 * p)
        said, unsaid = mix(look)
        assert torch.allclose(look.predicted(said), (1 - share) * new + share * p)
        assert torch.equal(unsaid, look.unsaid)
        assert bool(torch.equal(said, look.said)) == (share == 0)


def test_without_rho_nothing_is_predicted_more() -> None:
    task = ToyModel().task(BALL)
    plain, both = (GUARD.plan(task, GUARD.spec.settings({"rho": rho, "start": 0.7})) for rho in (0.0, 0.2))
    assert plain.mix is None and not plain.unedited and plain.text is plain.reader
    assert both.unedited and both.window.start == 0.7 and both.mix == Returning(0.2, 0.7)
