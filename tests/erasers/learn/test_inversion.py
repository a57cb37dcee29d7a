"""Textual inversion: that vectors learn what pictures show, and what a training makes of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from lethe.erasers.diffusers_host import DiffusersModel
from lethe.erasers.errors import SettingError
from lethe.erasers.learn.full import Full
from lethe.erasers.learn.inversion import Fit, Lesson, Word, first_vectors, learn_vectors, spliced
from lethe.erasers.learn.moment import MAIN, Latents
from lethe.erasers.learn.pictures import Pictures
from lethe.erasers.learn.plan import Plan, Schedule
from lethe.erasers.learn.run import Run
from lethe.erasers.learn.scenes import concept_scenes
from lethe.erasers.learn.space import mixed, own_space
from lethe.erasers.model import Token
from lethe.erasers.task import Task
from torch import Tensor
from toy_trainee import tiny_model, tiny_task


def lesson_of(model: DiffusersModel, count: int = 3, **given: Any) -> Lesson:
    """Pictures that are flat, and a sentence for each that ends in the vectors."""
    latents = torch.arange(1.0, count + 1)[:, None, None, None].expand(count, *model.latent_shape()) / count

    def row(i: int, word: Tensor) -> Sequence[Token]:
        return spliced(model.tower(), ("a red", "a blue", "a")[i % 3], (), word)

    return Lesson(latents, row, **given)


def learn(model: DiffusersModel, steps: int = 2, seed: int = 0, lesson: Lesson | None = None, **given: Any) -> Tensor:
    start = first_vectors(model.tower(), "ball", 2)
    with model.ready():
        return learn_vectors(
            model, lesson or lesson_of(model), start, Fit(steps, 0.02, 2), torch.Generator().manual_seed(seed), **given
        )


@torch.no_grad()
def error(model: DiffusersModel, word: Tensor) -> float:
    """How well vectors explain the pictures, with the same noise every time."""
    lesson, generator = lesson_of(model), torch.Generator().manual_seed(99)
    chosen = torch.arange(48) % len(lesson.latents)
    clean, sigma = lesson.latents[chosen], model.level(torch.rand(48, generator=generator))
    x = mixed(model.prediction(), clean, torch.randn(clean.shape, generator=generator), sigma)
    context = model.tower().encode([lesson.row(int(i), word) for i in chosen])[0]
    said = model.predict(x, sigma, context)
    return float((said - own_space(model.prediction(), x, sigma, clean)).square().mean())


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_truth_is_what_was_mixed_in(prediction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose prediction is the truth times one of the text features."""
    model = tiny_model(prediction)
    lesson = lesson_of(model, 1)

    def predict(x: Tensor, sigma: Tensor, context: Tensor, pooled: Tensor | None = None) -> Tensor:
        return own_space(model.prediction(), x, sigma, lesson.latents.expand_as(x)) * context[:, 4, :1, None, None]

    @torch.no_grad()
    def factor(word: Tensor) -> float:
        return float(model.tower().encode([lesson.row(0, word)])[0][0, 4, 0])

    monkeypatch.setattr(model, "predict", predict)
    before = factor(first_vectors(model.tower(), "ball", 2))
    assert abs(factor(learn(model, steps=8, lesson=lesson)) - 1) < 0.7 * abs(before - 1)


def test_vectors_learn_what_pictures_show() -> None:
    model = tiny_model("v_prediction")
    before = {name: value.clone() for name, value in model.unet.state_dict().items()}
    learned = learn(model, steps=16)
    assert error(model, learned) < 0.99 * error(model, first_vectors(model.tower(), "ball", 2))
    assert learned.shape == (2, 192)
    assert not learned.requires_grad
    assert all(torch.equal(before[name], value) for name, value in model.unet.state_dict().items())


def test_the_same_seed_finds_the_same_vectors() -> None:
    model = tiny_model()
    one, again, other = (learn(model, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_steps_are_told_and_can_be_stopped() -> None:
    model, told = tiny_model(), list[int]()

    def track(items: Iterable[int], count: int) -> Iterable[int]:
        for item in items:
            told.append(count)
            if len(told) == 3:
                raise KeyboardInterrupt
            yield item

    with pytest.raises(KeyboardInterrupt):
        learn(model, steps=5, track=track)
    assert told == [5, 5, 5]


def test_places_without_weight_teach_nothing() -> None:
    model = tiny_model()
    start = first_vectors(model.tower(), "ball", 2)
    blind = learn(model, steps=1, lesson=lesson_of(model, weights=torch.zeros(3, 8, 8)))
    assert torch.allclose(blind, start * (1 - 0.02 * 0.01), atol=1e-7)
    halves = torch.zeros(3, 8, 8)
    halves[:, :4] = 2.0
    weighted, plain = (learn(model, lesson=lesson_of(model, weights=w)) for w in (halves, torch.ones(3, 8, 8)))
    assert torch.allclose(plain, learn(model), atol=1e-6)
    assert not torch.allclose(weighted, plain, atol=1e-4)


def test_a_host_in_inference_mode_may_call_it() -> None:
    model = tiny_model()
    with torch.inference_mode():
        lesson = lesson_of(model)
        inside = learn(model, lesson=replace(lesson, latents=lesson.latents + 0))
    assert torch.equal(inside, learn(model))


def test_no_picture_is_an_error() -> None:
    model = tiny_model()
    with pytest.raises(SettingError, match="no picture"):
        learn(model, lesson=lesson_of(model, 0))


def word_run(task: Task, **given: Any) -> tuple[Run, Word]:
    scenes = concept_scenes(task, "object")
    word = Word(Pictures(scenes, count=2, steps=3, given=True), ("ball",), fit=Fit(2, batch=2), **given)
    return Run(task, Plan(Full("cross"), (), ()), Schedule(1, 1e-3), seed=4), word


def latents_of(task: Task) -> dict[str, Latents]:
    scenes = concept_scenes(task, "object")[:3]
    return {MAIN: Latents(torch.zeros(3, *task.loaded().latent_shape()), torch.ones(3), scenes)}


def test_a_word_is_learned_once_and_stands_in_place_of_the_name() -> None:
    task = tiny_task()
    run, word = word_run(task, count=2)
    with torch.no_grad(), run.active():
        made = word.make(run, latents_of(task)).states
        spent = run.predictions
        assert torch.equal(made, word.make(run, latents_of(task)).states)
        assert run.predictions == spent == 2 * 3 * 2 + 2 * 2
        tower, vectors = task.loaded().tower(), word.vectors(run)
        rows = [spliced(tower, prompt, ("ball",), vectors) for prompt in ("ball", "image of ball", "photo of ball")]
        assert torch.equal(made, tower.encode(rows)[0])
        assert not torch.equal(made, run.features(["ball", "image of ball", "photo of ball"]).states)


def test_without_vectors_the_prompts_are_as_they_were() -> None:
    task = tiny_task()
    run, word = word_run(task, count=0)
    with torch.no_grad(), run.active():
        made = word.make(run, latents_of(task)).states
        assert torch.equal(made, run.features(["ball", "image of ball", "photo of ball"]).states)


def test_a_word_is_what_the_model_knew_before_training() -> None:
    """A run that goes on from a state learns the same word, whatever its tensors are by then."""
    task = tiny_task()
    found = []
    for moved in (0.0, 0.3):
        run, word = word_run(task)
        for tensor in run.trainables.tensors.values():
            tensor += moved
        with torch.no_grad(), run.active():
            found.append(word.vectors(run))
    assert torch.equal(*found)


def test_the_users_pictures_are_learned_from_where_there_are_any() -> None:
    task = tiny_task(pictures=torch.ones(2, 4, 8, 8))
    run, word = word_run(task)
    with torch.no_grad(), run.active():
        own = word.vectors(run)
        assert run.predictions == 2 * 2
    run, word = word_run(tiny_task())
    with torch.no_grad(), run.active():
        assert not torch.equal(own, word.vectors(run))
