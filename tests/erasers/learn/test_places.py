"""Where a name's tokens and the end tokens stand in a prompt."""

from __future__ import annotations

import pytest
import torch
from lethe.erasers.errors import ConceptError, FamilyError
from lethe.erasers.learn.places import EVERY, FIRST, NONE, end_places, name_places, token_mask
from lethe.erasers.learn.scenes import framed_scenes
from lethe.erasers.task import EncodedPrompt
from toy_trainee import tiny_task, world


def _places(prompt: str, name: str) -> list[int]:
    return name_places(*world().model.encode([prompt, name]))


def test_a_names_tokens_are_found_wherever_they_stand() -> None:
    assert _places("a red ball", "ball") == [3]
    assert _places("a red ball", "red ball") == [2, 3]
    assert _places("a ball on a ball", "ball") == [2, 5]
    with pytest.raises(ConceptError):
        _places("a red ball", "tree")


def test_end_tokens_are_those_that_the_padding_repeats() -> None:
    (prompt,) = world().model.encode(["a red ball"])
    assert end_places(prompt, EVERY) == list(range(4, 77))
    assert end_places(prompt, FIRST) == [4]
    assert end_places(prompt, NONE) == []
    padded_otherwise = EncodedPrompt("x", torch.zeros(6, 2), 2, (9, 1, 2, 8, 0, 0))
    assert end_places(padded_otherwise, EVERY) == [3]


def test_an_encoder_without_token_ids_is_refused() -> None:
    silent = EncodedPrompt("x", torch.zeros(6, 2), 2)
    with pytest.raises(FamilyError):
        name_places(silent, silent)


def test_a_mask_has_a_row_for_each_scene() -> None:
    task = tiny_task()
    scenes = framed_scenes(task, ("{}", "a photo of {}"))
    assert [(found["concept"], found["name"]) for found in scenes] == [("ball", "ball"), ("a photo of ball", "ball")]
    assert token_mask(task, scenes).nonzero().tolist() == [[0, 1], [1, task.encode(["a photo of ball"])[0].last]]
    assert token_mask(task, scenes, EVERY)[0].tolist() == [0.0] + [1.0] * 76
