"""Ring-A-Bell: the concept's direction, the genetic search, and the demo world."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import replace
from functools import cache

import pytest
import torch
from lethe.erasers.attacks.ring_a_bell import ATTACK, Breeding, Search, candidate_tokens, concept_direction, crossed
from lethe.erasers.concepts import Concept
from lethe.erasers.demo.gallery import Gallery
from lethe.erasers.demo.world import judge
from lethe.erasers.painter import Cue, Shot
from lethe.erasers.target import Found, Target
from torch import Tensor
from toy_attack import WordModel, scripted
from toy_tower import END, START

CONCEPT = Concept("w5", "w6", ("w7",))
PROMPTS = ("w1 w2 w3", "w9 w5")


@cache
def gallery() -> Gallery:
    return Gallery(steps=8)


def states(model: WordModel, *prompts: str) -> Tensor:
    with torch.no_grad():
        return model.run(list(prompts))[0]


def search(seed: int = 0, goal: str = "w3 w7 w9 w4", **rules: object) -> Search:
    model = WordModel()
    breeding = replace(Breeding(population=20, length=4, crossover=0.5, mutation=0.25, elite=True), **rules)
    tower = model.tower()
    generator = torch.Generator().manual_seed(seed)
    return Search(tower, states(model, goal)[0], candidate_tokens(tower, True), breeding, generator)


def attack(prompts: tuple[str, ...] = PROMPTS, seed: int = 0, **settings: object) -> Found:
    model = WordModel()
    attacked = replace(scripted(model, model, prompts, seed=seed)[0], concept=CONCEPT)
    given = {"population": 12, "generations": 3, "length": 4, "templates": "none", **settings}
    return ATTACK.run(attacked, ATTACK.spec.settings(given))


def bests(found: Search, rounds: int) -> list[float]:
    """The best error of each generation."""
    errors = [float(found.errors.min())]
    for _ in range(rounds):
        found.advance()
        errors.append(float(found.errors.min()))
    return errors


def test_the_direction_is_the_mean_over_names_and_sentences() -> None:
    model = WordModel()
    frames = ("{}", "w1 {} w2")
    e = states(model, "w5", "w7", "w6", "w1 w5 w2", "w1 w7 w2", "w1 w6 w2")
    expected = ((e[0] - e[2]) + (e[1] - e[2]) + (e[3] - e[5]) + (e[4] - e[5])) / 4
    assert torch.allclose(concept_direction(model.tower(), CONCEPT, frames), expected, atol=1e-6)


def test_a_concept_without_a_replacement_is_told_from_the_sentence_without_it() -> None:
    model = WordModel()
    e = states(model, "w5", "", "w1 w5 w2", "w1 w2")
    expected = (e[0] - e[1] + e[2] - e[3]) / 2
    assert torch.allclose(concept_direction(model.tower(), Concept("w5"), ("{}", "w1 {} w2")), expected, atol=1e-6)


def test_tokens_that_are_typed_otherwise_are_searched_only_on_request() -> None:
    tower = WordModel().tower()
    odd = replace(tower, decode=lambda ids: "w1 w2" if list(ids) == [40] else tower.decode(ids))
    assert candidate_tokens(odd, True).tolist() == [number for number in range(START) if number != 40]
    assert candidate_tokens(odd, False).tolist() == list(range(START))


def test_errors_are_squared_distances_over_the_whole_window_and_stay_right() -> None:
    found = search()
    for rounds in range(4):
        texts = [found.tower.decode(row) for row in found.ids.tolist()]
        goal = states(WordModel(), "w3 w7 w9 w4")
        expected = (states(WordModel(), *texts) - goal).square().sum((1, 2))
        assert torch.allclose(found.errors, expected, rtol=1e-4, atol=1e-4), rounds
        found.advance()


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("mutation", [0.25, 1.0])
def test_no_round_makes_the_best_worse_while_it_is_spared(seed: int, mutation: float) -> None:
    errors = bests(search(seed, mutation=mutation), 25)
    assert all(later <= earlier for earlier, later in itertools.pairwise(errors))
    assert errors[-1] < errors[0]


def test_the_best_is_lost_where_it_is_not_spared() -> None:
    errors = bests(search(mutation=1.0, elite=False), 25)
    assert any(later > earlier for earlier, later in itertools.pairwise(errors))


def test_the_better_half_survives() -> None:
    found = search(mutation=0.0, crossover=0.0)
    before = found.errors.sort().values[:10]
    found.advance()
    assert torch.equal(found.errors, before)
    found.advance()
    assert len(found.ids) == 10


def test_a_mutation_is_one_token_of_the_candidates() -> None:
    found = search(population=120, mutation=1.0, crossover=0.0)
    found.candidates = torch.tensor([50, 51])
    parents = found.ids[found.errors.argsort(stable=True)[:60]]
    found.advance()
    changed = found.ids != parents
    assert not changed[0].any()
    assert (changed.sum(1) <= 1).all()
    assert changed.sum() > 55  # the rest drew the token they had
    assert set(found.ids[changed].tolist()) <= {50, 51}
    assert changed.any(0).all()


def test_children_take_one_end_from_each_parent() -> None:
    parents = torch.arange(40)[:, None] * 100 + torch.arange(5)
    generator = torch.Generator().manual_seed(0)
    assert len(crossed(parents, 0.0, generator)) == 0
    children = crossed(parents, 1.0, generator) // 100
    one, other = children.split(40)
    assert torch.equal(one[:, 0], torch.arange(40))
    assert torch.equal(one[:, 0], other[:, -1])
    assert torch.equal(one[:, -1], other[:, 0])
    cuts = (one == one[:, :1]).sum(1)[one[:, 0] != one[:, -1]]
    assert set(cuts.tolist()) == {1, 2, 3, 4}
    assert ((one[:, 1:] != one[:, :-1]).sum(1) <= 1).all()
    assert 20 < len(crossed(parents, 0.5, generator)) < 60


def test_the_attacked_prompt_is_found_again_where_nothing_is_added() -> None:
    found = attack(("w3 w7",), population=80, generations=60, length=2, eta=0.0)
    assert [cue.text for cue in found.cues] == ["w3 w7"]
    assert (found.predictions, found.checks, dict(found.embeddings)) == (0, 0, {})


def test_eta_moves_the_goal_along_the_direction() -> None:
    """With P = "w6" and the pair "w5", "w6", eta = 1 asks for the features of "w5"."""
    model = WordModel()
    attacked = replace(scripted(model, model, ("w6",))[0], concept=Concept("w5", "w6"))
    given = {"population": 80, "generations": 60, "length": 2, "templates": "none"}
    found = ATTACK.run(attacked, ATTACK.spec.settings({**given, "eta": 1.0}))
    assert found.cues[0].text.split()[0] == "w5"
    assert ATTACK.run(attacked, ATTACK.spec.settings({**given, "eta": 0.0})).cues[0].text.split()[0] == "w6"


def test_the_same_seed_finds_the_same_whatever_is_attacked_beside_it() -> None:
    texts = [cue.text for cue in attack().cues]
    assert texts == [cue.text for cue in attack().cues]
    assert texts[1:] == [cue.text for cue in attack(PROMPTS[1:]).cues]
    assert texts != [cue.text for cue in attack(seed=1).cues]
    assert all(len(text.split()) == 4 for text in texts)


def test_a_prompt_is_no_longer_than_the_window() -> None:
    assert len(attack(length=60).cues[0].text.split()) == 10


def test_the_search_can_be_watched_and_stopped() -> None:
    seen = []

    def track(items: Iterable[int], count: int) -> Iterable[int]:
        for item in items:
            seen.append((item, count))
            yield item

    model = WordModel()
    attacked = replace(scripted(model, model, PROMPTS)[0], concept=CONCEPT, track=track)
    ATTACK.run(attacked, ATTACK.spec.settings({"population": 4, "generations": 3, "length": 2, "templates": "none"}))
    assert seen == [(0, 3), (1, 3), (2, 3)]


def test_the_guarded_model_is_not_asked() -> None:
    model = WordModel()
    attacked, painter = scripted(None, model, PROMPTS)
    ATTACK.run(
        replace(attacked, concept=CONCEPT),
        ATTACK.spec.settings({"population": 4, "generations": 2, "length": 2, "templates": "none"}),
    )
    assert not painter.shots
    assert model.predictions == 0
    assert END not in candidate_tokens(model.tower(), False)


@pytest.mark.parametrize("seed", [0, 2])
def test_words_are_found_that_mean_the_concept_to_the_demo_world(seed: int) -> None:
    """To the untouched model, which the search knows; erasers that move such words along hold against it."""
    red = Concept("red", "blue")

    def shows(pictures: Tensor) -> Tensor:
        return torch.tensor(["red" in seen for seen in judge().seen(pictures)])

    def rate(cues: tuple[Cue, ...]) -> float:
        shots = [Shot(cue, 500 + i) for cue in cues for i in range(8)]
        return float(shows(gallery().paint(shots)).float().mean())

    target = Target(red, ("a blue tree",), gallery().model, gallery().model, gallery(), shows, seed=seed)
    given = {"population": 40, "generations": 25, "length": 3, "templates": "attribute"}
    found = ATTACK.run(target, ATTACK.spec.settings(given))
    assert rate(target.plain()) == 0
    assert rate(found.cues) > 0.7
