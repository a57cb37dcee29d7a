"""Exchanging a concept's name in a prompt."""

from __future__ import annotations

import pytest
from lethe.erasers.concepts import Concept
from lethe.erasers.prompts import exchanged, with_replacement


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a red ball", "a red box"),
        ("Ball, at night", "box, at night"),
        ("a BALL and a ball", "a box and a box"),
        ("a ballroom with a ball", "a ballroom with a box"),
        ("a football", None),
        ("a ball2", None),
        ("a beach ball here", "a box here"),
        ("an orb and a ball", "an box and a box"),
    ],
)
def test_every_standing_name_is_exchanged_and_no_part_of_a_word(prompt: str, expected: str | None) -> None:
    assert exchanged(prompt, ("ball", "beach ball", "orb"), "box") == expected


def test_words_and_names_are_taken_as_they_are_written() -> None:
    assert exchanged("a c++ book", ("c++",), r"\1 box") == r"a \1 box book"
    assert exchanged("a ccc book", ("c++",), "box") is None


def test_an_empty_word_leaves_no_gap() -> None:
    assert with_replacement("a red  ball at night", Concept("ball")) == "a red at night"
    assert with_replacement("an orb", Concept("ball", "box", ("orb",))) == "an box"
    assert with_replacement("a red box", Concept("ball")) is None
