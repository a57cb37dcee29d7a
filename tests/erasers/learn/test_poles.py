"""Pole targets and scenes."""

from __future__ import annotations

import pytest
from lethe.erasers.concepts import Concept, ConceptList
from lethe.erasers.errors import ConceptError
from lethe.erasers.learn.moment import ANCHOR, CONCEPT, NAME, NULL, TEACHER
from lethe.erasers.learn.poles import NEUTRAL, pole_scenes, pole_shift
from toy_trainee import tiny_task


def test_weights_of_a_shift() -> None:
    assert pole_shift(NEUTRAL, CONCEPT, ANCHOR, -4.0) == {
        (TEACHER, NEUTRAL): 1.0,
        (TEACHER, CONCEPT): -4.0,
        (TEACHER, ANCHOR): 4.0,
    }
    assert pole_shift(NULL, CONCEPT, NULL, -2.0) == {(TEACHER, NULL): 3.0, (TEACHER, CONCEPT): -2.0}


def test_an_attribute_stands_before_every_prompt() -> None:
    scenes = pole_scenes(tiny_task(), "none", ("blue",))
    assert scenes == (
        {NULL: "", CONCEPT: "ball", ANCHOR: "box", NEUTRAL: "", NAME: "ball"},
        {NULL: "", CONCEPT: "blue ball", ANCHOR: "blue box", NEUTRAL: "blue", NAME: "ball"},
    )


def test_the_neutral_prompt_is_the_sentence_without_the_concept() -> None:
    scenes = pole_scenes(tiny_task(ConceptList((Concept("ball"),))), "attribute")
    said = [(scene[CONCEPT], scene[ANCHOR], scene[NEUTRAL]) for scene in scenes]
    assert said[:2] == [("ball", "", ""), ("ball style", "style", "style")]
    assert said[3] == ("a ball thing", "a thing", "a thing")


def test_nothing_to_erase_is_an_error() -> None:
    with pytest.raises(ConceptError, match="no concept"):
        pole_scenes(tiny_task(ConceptList()), "none")
