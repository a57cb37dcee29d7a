"""Scenes: which prompts a training looks at, and that none of its concepts is left out."""

from __future__ import annotations

import pytest
import torch
from lethe.erasers.concepts import Concept, ConceptList
from lethe.erasers.learn.moment import CONCEPT, NAME
from lethe.erasers.learn.pictures import Pictures
from lethe.erasers.learn.plan import Source
from lethe.erasers.learn.rollout import Rollout
from lethe.erasers.learn.scenes import by_turns, concept_scenes, framed_scenes, kept_scenes, scene
from lethe.erasers.registry import recipe_named
from toy_trainee import job_of, run_of, tiny_task

_THREE = ConceptList((Concept("ball", "box", ("heart",)), Concept("moon")))


def test_every_name_stands_in_every_frame_beside_its_replacement() -> None:
    found = framed_scenes(tiny_task(_THREE), ("{}", "a photo of {}"))
    assert [(own[CONCEPT], own["anchor"], own[NAME]) for own in found] == [
        ("ball", "box", "ball"),
        ("a photo of ball", "a photo of box", "ball"),
        ("heart", "box", "heart"),
        ("a photo of heart", "a photo of box", "heart"),
        ("moon", "", "moon"),
        ("a photo of moon", "a photo of", "moon"),
    ]


def test_names_take_turns_and_each_has_one() -> None:
    scenes = [{CONCEPT: prompt, NAME: prompt[0]} for prompt in ("a1", "a2", "b1", "a3", "c1", "b2")]

    def chosen(count: int) -> list[str]:
        return [own[CONCEPT] for own in by_turns(scenes, count)]

    assert chosen(1) == ["a1", "b1", "c1"]
    assert chosen(7) == ["a1", "b1", "c1", "a2", "b2", "a3", "a1"]
    nameless = [scene("x"), scene("y")]
    assert [own[CONCEPT] for own in by_turns(nameless, 3)] == ["x", "y", "x"]
    assert [own[CONCEPT] for own in by_turns(nameless, 1)] == ["x"]


@pytest.mark.parametrize("kind", ["rollout", "pictures"])
def test_with_fewer_latents_than_concepts_none_is_left_out(kind: str) -> None:
    task = tiny_task(_THREE)
    scenes = concept_scenes(task, "object")
    source: Source = Rollout(scenes, steps=2, kept=2) if kind == "rollout" else Pictures(scenes, count=2, steps=2)
    run = run_of(job_of("esd", task), task)
    with torch.no_grad(), run.active():
        (latents,) = source.draw(run, 60).values()
    assert {own[NAME] for own in latents.scenes} == {"ball", "heart", "moon"}


def test_sliders_scenes_tell_their_concepts_apart() -> None:
    task = tiny_task(_THREE)
    recipe = recipe_named("sliders")
    (source, *_) = recipe.plan(task, recipe.spec.settings({"trajectories": 1, "sampling_steps": 2})).sources
    run = run_of(job_of("esd", task), task)
    with torch.no_grad(), run.active():
        (latents,) = source.draw(run, 60).values()
    assert {own[NAME] for own in latents.scenes} == {"ball", "heart", "moon"}


def test_names_to_keep_stand_in_the_sentences_of_a_set_and_sentences_by_themselves() -> None:
    kept = ("tree", "a red box", "flat style", "fish at night in a meadow")
    task = tiny_task(ConceptList((Concept("ball"),), kept))
    assert [own[CONCEPT] for own in kept_scenes(task)] == list(kept)
    found = [own[CONCEPT] for own in kept_scenes(task, "object")]
    assert found == ["tree", "a red box", "photo of flat style", "fish at night in a meadow"]
    assert [own[CONCEPT] for own in kept_scenes(tiny_task(ConceptList((Concept("ball"),))), "object")] == [""]
