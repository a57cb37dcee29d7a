"""The sweep of wordings: which there are, in what order, which is taken, and the demo world."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from lethe.erasers.attacks.paraphrase import ATTACK, SENTENCES, misspelled, wordings
from lethe.erasers.concepts import Concept, ConceptList
from lethe.erasers.demo.gallery import Gallery
from lethe.erasers.demo.world import judge
from lethe.erasers.errors import SettingError
from lethe.erasers.painter import Cue, Shot
from lethe.erasers.registry import methods
from lethe.erasers.target import Found, Target
from torch import Tensor
from toy_attack import BALL, ScriptedPainter, never, scripted

SPELLED = ["baall", "blal", "ba-ll", "ba ll", "b a l l"]
Rule = Callable[[str, int], bool]


def said(
    prompt: str = "a ball", others: tuple[str, ...] = (), concept: Concept = BALL, **settings: object
) -> list[str]:
    target = replace(scripted(None, None, (prompt,))[0], words=others, concept=concept)
    return wordings(prompt, target, ATTACK.spec.settings(settings))


def attack(
    rule: Rule = never, prompts: tuple[str, ...] = ("a ball", "ball here"), **settings: object
) -> tuple[list[str], Found, ScriptedPainter]:
    target, painter = scripted(None, None, prompts, rule)
    found = ATTACK.run(replace(target, words=("orb",)), ATTACK.spec.settings({"tries": 2, **settings}))
    return [cue.text for cue in found.cues], found, painter


def test_misspellings() -> None:
    assert misspelled("ball") == ["BALL", "balls", "b4ll", *SPELLED]
    assert misspelled("Mona Lisa")[:3] == ["MONA LISA", "Mona Lisas", "M0n4 L154"]
    assert misspelled("x") == ["X", "xs"]
    assert misspelled("ox") == ["OX", "oxs", "0x", "oox", "xo", "o-x", "o x"]


def test_the_kinds_take_turns_until_the_limit() -> None:
    assert said(others=("orb", "globe"), limit=7) == [
        "a orb", "a BALL", SENTENCES[0].format("a ball"),
        "a globe", "a balls", SENTENCES[1].format("a ball"),
        "a b4ll",
    ]  # fmt: skip


def test_each_kind_can_be_left_out() -> None:
    only = {"words": False, "spelling": False, "templates": False}
    assert said(others=("orb",), **{**only, "words": True}) == ["a orb"]
    assert said(others=("orb",), **{**only, "spelling": True}) == [f"a {name}" for name in misspelled("ball")]
    assert said(others=("orb",), **{**only, "templates": True}) == [each.format("a ball") for each in SENTENCES]


def test_wordings_are_told_once_and_differ_from_the_prompt() -> None:
    found = said("a BALL", others=("ball", "BALL", "orb", "orb"), templates=False)
    assert found.count("a orb") == 1
    assert "a BALL" not in found
    assert "a ball" in found


def test_every_name_is_misspelled() -> None:
    found = said("a round orb", concept=Concept("ball", "box", ("orb",)), templates=False)
    assert {"a round balls", "a round orbs", "a round 0rb"} <= set(found)


def test_a_prompt_that_does_not_name_the_concept_has_sentences_only() -> None:
    assert said("something round", others=("orb",)) == [each.format("something round") for each in SENTENCES]


def test_nothing_to_try_is_said() -> None:
    with pytest.raises(SettingError, match="no other wording"):
        attack(prompts=("something round",), templates=False)


def test_the_wording_that_shows_most_is_taken_for_each_prompt() -> None:
    wanted = {"a ball": 1, "a orb": 2, "a balls": 3, "b4ll here": 1}
    rule: Rule = lambda text, seed: seed - 1_000_000 < wanted.get(text, 0)  # noqa: E731
    assert attack(rule, tries=3)[0] == ["a balls", "b4ll here"]
    assert attack(rule, tries=2)[0] == ["a orb", "b4ll here"]


def test_the_prompts_stay_as_they_are_where_nothing_does_better() -> None:
    assert attack(never)[0] == ["a ball", "ball here"]
    assert attack(lambda _text, _seed: True)[0] == ["a ball", "ball here"]


@pytest.mark.parametrize("tries", [1, 3])
@pytest.mark.parametrize("limit", [1, 5, 100])
def test_every_picture_is_counted(tries: int, limit: int) -> None:
    _, found, painter = attack(prompts=("a ball", "round"), tries=tries, limit=limit)
    assert found.checks == len(painter.shots)
    assert len(set(painter.texts)) <= 2 * (limit + 1)
    assert found.predictions == 0


def test_the_concept_comes_back_in_the_demo_world() -> None:
    gallery = Gallery(steps=8)
    chosen = methods()["uce"]
    eraser = chosen.fit(gallery.task(ConceptList((BALL,), lists=("demo-world",))), chosen.spec.settings({}))
    erased = gallery.erased(eraser)

    def shows(pictures: Tensor) -> Tensor:
        return torch.tensor(["ball" in seen for seen in judge().seen(pictures)])

    def rate(painter: Any, cues: tuple[Cue, ...]) -> float:
        return float(shows(painter.paint([Shot(cue, 500 + i) for cue in cues for i in range(8)])).float().mean())

    target = Target(BALL, ("a blue ball at night",), erased.model, gallery.model, erased, shows)
    found = ATTACK.run(target, ATTACK.spec.settings({"tries": 2, "limit": 16}))
    assert rate(erased, target.plain()) < 0.2
    assert rate(erased, found.cues) > 0.3
