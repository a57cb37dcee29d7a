"""What an attack is given: checks before it begins, and looks at what it found."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from lethe.erasers.concepts import Concept
from lethe.erasers.errors import ConceptError
from lethe.erasers.painter import prompted
from lethe.erasers.target import Target
from toy_attack import BALL, ScriptedPainter, WordModel


def _target() -> Target:
    model, painter = WordModel(), ScriptedPainter(lambda text, seed: text == "w1" and seed % 2 == 0)
    return Target(BALL, ("w0",), model, model, painter, lambda pictures: pictures.flatten(1).mean(1) > 0.5)


def test_a_prompt_or_a_name_without_words_is_refused() -> None:
    with pytest.raises(ConceptError, match="no prompt to attack"):
        replace(_target(), prompts=())
    with pytest.raises(ConceptError, match="no prompt to attack"):
        replace(_target(), prompts=("w0", " "))
    with pytest.raises(ConceptError, match="reads nothing in '-'"):
        replace(_target(), concept=Concept("-")).tower()
    assert _target().tower().content("ball")


def test_checks_count_pictures_on_seeds_of_their_own() -> None:
    target = _target()
    assert target.check([prompted("w1"), prompted("w2")], 4) == [2, 0]
    painter = target.painter
    assert isinstance(painter, ScriptedPainter)
    assert min(shot.seed for shot in painter.shots) > 1000
    assert target.latents().shape == (1, 2, 2, 2)
    assert torch.equal(target.latents(), target.latents())
