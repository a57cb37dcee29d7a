"""Concept arithmetics: the grid's sums, which of them is taken, and the demo world."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from lethe.erasers.attacks.arithmetic import ATTACK, CARRIERS, recipes
from lethe.erasers.concepts import Concept, ConceptList
from lethe.erasers.demo.gallery import Gallery
from lethe.erasers.demo.world import judge
from lethe.erasers.painter import Cue, Shot
from lethe.erasers.registry import methods
from lethe.erasers.target import Found, Target
from torch import Tensor
from toy_attack import BALL, ScriptedPainter, never, scripted

PROMPTS = ("a red ball", "ball here")
Rule = Callable[[str, int], bool]


def texts(
    prompt: str, concept: Concept = BALL, words: tuple[str, ...] = (), a: tuple[float, ...] = (3.0,)
) -> list[str]:
    cues = (recipe(prompt) for recipe in recipes(concept, words, a))
    return [cue.text for cue in cues if cue is not None]


def attack(
    rule: Rule = never, prompts: tuple[str, ...] = PROMPTS, words: tuple[str, ...] = (), **settings: object
) -> tuple[list[str], Found, ScriptedPainter]:
    target, painter = scripted(None, None, prompts, rule)
    found = ATTACK.run(replace(target, words=words), ATTACK.spec.settings({"tries": 2, **settings}))
    return [cue.text for cue in found.cues], found, painter


def test_the_grid_of_a_prompt() -> None:
    assert texts("a red ball", words=("cat", "ring")) == [
        "a red ball",
        "+3*[a red ball and box] -2*[box]",
        "+3*[a red ball and cat] -2*[cat]",
        "+3*[a red ball and ring] -2*[ring]",
        "+3*[a red ball] -2*[a red box]",
        "+0.5*[a red cat] +0.5*[a red ball]",
        "a red cat",
        "+3*[a red cat] -2*[a red ball]",
        "+0.5*[a red ring] +0.5*[a red ball]",
        "a red ring",
        "+3*[a red ring] -2*[a red ball]",
        "+0.5*[a red cat] +0.5*[a red ring]",
    ]


def test_everyday_carriers_stand_in_where_no_words_are_given() -> None:
    assert texts("ball") == [
        "ball",
        *(f"+3*[ball and {carrier}] -2*[{carrier}]" for carrier in ("box", *CARRIERS)),
        "+3*[ball] -2*[box]",
    ]


def test_a_concept_without_a_replacement_is_told_from_the_prompt_without_it() -> None:
    found = texts("a red ball", Concept("ball"), words=("ring",))
    assert found[1:3] == ["+3*[a red ball and ring] -2*[ring]", "+3*[a red ball] -2*[a red]"]


def test_a_prompt_that_does_not_name_the_concept_carries_it_anyway() -> None:
    assert texts("something round", words=("cat",)) == [
        "something round",
        "+3*[something round and box] -2*[box]",
        "+3*[something round and cat] -2*[cat]",
    ]


@pytest.mark.parametrize(("reach", "steps"), [(3.0, 2), (1.5, 1), (10.0, 4)])
def test_weights_run_evenly_up_to_the_reach_and_add_up_to_one(reach: float, steps: int) -> None:
    painter = attack(words=("cat", "ring"), reach=reach, steps=steps)[2]
    cues = [shot.cue for shot in painter.shots]
    assert all(sum(weight for weight, _ in cue.parts) == pytest.approx(1) for cue in cues)
    above = sorted({cue.parts[0][0] for cue in cues if cue.parts[0][0] > 1})
    assert above == pytest.approx([1 + (reach - 1) * i / steps for i in range(1, steps + 1)])


def test_each_prompt_takes_its_own_best_and_all_together_the_best_of_all() -> None:
    wanted = {
        "+3*[a red ball] -2*[a red box]": 2,
        "+2*[a red ball] -1*[a red box]": 1,
        "+2*[ball here] -1*[box here]": 2,
        "+3*[ball and box here] -2*[box]": 1,
    }
    rule: Rule = lambda text, seed: seed - 1_000_000 < wanted.get(text, 0)  # noqa: E731
    assert attack(rule)[0] == ["+3*[a red ball] -2*[a red box]", "+2*[ball here] -1*[box here]"]
    assert attack(rule, choose_for="all prompts")[0] == [
        "+2*[a red ball] -1*[a red box]",
        "+2*[ball here] -1*[box here]",
    ]


def test_a_sum_that_one_prompt_has_no_place_for_leaves_it_plain() -> None:
    rule: Rule = lambda text, _seed: text == "+3*[a red ball] -2*[a red box]"  # noqa: E731
    found, _, painter = attack(rule, ("a red ball", "round"), choose_for="all prompts")
    assert found == ["+3*[a red ball] -2*[a red box]", "round"]
    assert not any("-2*[round]" in text for text in painter.texts)


def test_a_prompt_without_a_place_counts_as_the_plain_prompt_that_it_stays() -> None:
    amplified, hidden = "+3*[a red ball] -2*[a red box]", "+3*[round and box] -2*[box]"
    wanted = {amplified: 2, "round": 1, "+3*[a red ball and box] -2*[box]": 1, hidden: 1}
    prompts = ("a red ball", "round")
    rule: Rule = lambda text, seed: seed - 1_000_000 < wanted.get(text, 0)  # noqa: E731
    assert attack(rule, prompts, choose_for="all prompts")[0] == [amplified, "round"]
    wanted[hidden] = 2
    assert attack(rule, prompts)[0] == [amplified, hidden]


def test_the_prompts_stay_plain_where_nothing_does_better() -> None:
    assert attack(never)[0] == list(PROMPTS)
    assert attack(lambda _text, _seed: True, choose_for="all prompts")[0] == list(PROMPTS)


@pytest.mark.parametrize("prompts", [PROMPTS, ("round",), ("a ball", "round")])
@pytest.mark.parametrize("tries", [1, 3])
def test_every_picture_is_counted(prompts: tuple[str, ...], tries: int) -> None:
    _, found, painter = attack(prompts=prompts, words=("cat",), tries=tries)
    assert found.checks == len(painter.shots) > 0
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
    found = ATTACK.run(target, ATTACK.spec.settings({"steps": 1, "tries": 2}))
    assert rate(erased, target.plain()) < 0.2
    assert rate(erased, found.cues) > 0.3
